#| QDQ compiler: checkpoint in, measured INT8 engine and Triton repository out.
#|
#|   make engine     compile MODEL for this machine; everything lands in build/
#|   make serve      a real Triton server, which takes text, on what was compiled
#|                   last; with MODEL=…, or before anything was, engine first
#|   make bench      time that engine against FP32, without a time budget
#|   make bench-t4   INT8, FP16 and FP32 TensorRT plans side by side on the GPU
#|   make bench-peers  our CPU engines and other tools (NNCF, ONNX Runtime's
#|                   quantizers, torch), interleaved; a second environment
#|   make compare-compiled  our TensorRT graph and other tools' (ModelOpt, ONNX
#|                   Runtime's) in NVIDIA's compiler: docs/tensorrt.md
#|   make walkthrough DATA=…  fine-tune on MRPC, quantize dynamically, compare
#|   make test       make lint, type and docs, then the tests (ARGS="-k name"
#|                   chooses some; in WORKERS=2 processes, 0 for a debugger)
#|   make test-gpu   the tests that need an NVIDIA GPU and TensorRT
#|   make test-avx2  the tests as on a CPU without AVX-512, on one that has it
#|   make lint       ruff check, ruff format --check, and who may import whom
#|   make type       mypy --strict
#|   make setup      create .venv (the targets above do so when needed)
#|   make clean      remove build/ and caches; make distclean: .venv too
#|   make results    measure README.md's tables anew
#|   make prove      compare the linter with NVIDIA's compiler, and prove the
#|                   TensorRT graphs without a GPU: docs/check.md, tensorrt.md
#|   make profile    measure the cost pictures of docs/performance.md anew
#|   make accuracy   measure what docs/accuracy.md lacks, and write it
#|   make compression  the same for docs/compression.md: trainings and engines
#|   make docs       the pages of docs/ as a site in build/site/, from an
#|                   environment of its own; a warning is an error
#|   make lock       renew constraints.txt from the ranges in pyproject.toml
#|
#| Variables of engine and bench (`.venv/bin/qdq compile --help-all` has details):
#|   MODEL=         hub id, folder, or checkpoint/ of a run (default: the
#|                  bundled all-MiniLM-L6-v2)
#|   TASK=          feature-extraction, text-classification,
#|                  token-classification, question-answering, fill-mask,
#|                  multiple-choice, next-sentence-prediction,
#|                  information-extraction, language-modeling (default: from the
#|                  checkpoint's architecture)
#|   MODEL_CLASS=   class of your own, FILE.py:CLASS, whose code is then run
#|                  (default: transformers' class)
#|   TARGET=        auto, openvino, onnxruntime, tensorrt, tensorrt-rtx
#|                  (default: auto, which is tensorrt when a GPU and the
#|                  tensorrt module are there, else openvino or onnxruntime,
#|                  whichever is faster here)
#|   CALIB=         file, folder or datasets:NAME (default: bundled English
#|                  text)
#|   EVAL=          text to compare with FP32 on and to time with (default: the
#|                  rows behind the calibration rows, else bundled text)
#|   TEXT_COLUMNS=  column of the text, and of its pair (default: detected)
#|   LABEL_COLUMN=  column of the label or tags; with commas one 0/1 column per
#|                  class (default: detected)
#|   HEADER=        names of the columns of a table or tagged file without a
#|                  header line (default: its first line)
#|   LABELS=        names of the classes whose numbers the data hold, in order
#|                  (default: the file's, the model's)
#|   PLACEMENT=     auto, linear, linear+qk, fused, qdqbert, dynamic, ft1, ft2,
#|                  ft3, trt (default: auto)
#|   CALIBRATOR=    clip (max, residual adds by the error of their sum), max,
#|                  percentile, entropy, mse, emd, avg, moving_average; as in
#|                  PaddleNLP abs_max, min_max, hist, KL, moving_average_abs_max
#|                  (default: clip)
#|   SAMPLES=       calibration texts (default: 128)
#|   BATCH=         benchmark batch, Triton's largest batch (default: 40)
#|   SEQ=           benchmark sequence; longer texts are cut (default: 128)
#|   THREADS=       threads of a request (default: 0, all cores of a NUMA node;
#|                  throughput: 1)
#|   HINT=          what OpenVINO computes outside INT8: f32, bf16, f16
#|                  (default: f32)
#|   SM=            the GPU's compute capability, 75 for 7.5: 75, 80, 86, 89,
#|                  120, 121 (default: 75)
#|   BENCH_SECONDS= time budget of the benchmark inside compile (default: 20)
#|   OUT=           work directory (default: build/<model name>)
#|
#| Variables of setup:
#|   PYTHON=       interpreter, 3.11 or newer                 (default: python3)
#|   TORCH_INDEX=  package index for torch alone. On Linux, PyTorch's CPU index
#|                 https://download.pytorch.org/whl/cpu saves gigabytes.
#|   PIP_FLAGS=    pip's options    (default: -qq; empty shows its progress)
#|
#| `make` reports any failure as 2. The line above it has qdq's own code: 1
#| failed, 2 usage, 3 done as far as this machine can (its text says what is
#| missing, for example a GPU); `.venv/bin/qdq` returns these codes itself.

.DEFAULT_GOAL := help
.PHONY: profile docs help setup accuracy engine bench bench-t4 prove test lint type clean distclean lock results test-avx2 test-gpu bench-peers compare-compiled

VENV := .venv
PYTHON ?= python3
PIP_FLAGS ?= -qq
EXTRAS := cpu,rtx,triton,train,dev

# ---- options: make variable = qdq option ----------------------------------------
# Their help above is that of qdq.pipeline.options; tests/test_qdq/test_makefile.py compares and prints what it should be.
ENGINE_OPTIONS := MODEL=model TASK=task MODEL_CLASS=model-class TARGET=target CALIB=calibration EVAL=eval-data TEXT_COLUMNS=text-columns \
  LABEL_COLUMN=label-column HEADER=header LABELS=labels PLACEMENT=placement CALIBRATOR=calibrator SAMPLES=samples \
  BATCH=batch SEQ=sequence THREADS=threads HINT=precision-hint SM=sm BENCH_SECONDS=bench-seconds OUT=out
variable = $(firstword $(subst =, ,$(1)))
option = $(lastword $(subst =, ,$(1)))

# A model name is text, whatever it holds: what the user typed is never read as code. make would expand $(...) in a
# variable when it exports it, so each becomes its own unexpanded text first, as if the line "override MODEL := $(value
# MODEL)" stood here for every name (override, because it may have been set on make's command line).
TYPED := $(foreach pair,$(ENGINE_OPTIONS),$(call variable,$(pair))) TORCH_INDEX DATA
$(foreach name,$(TYPED),$(eval override $(name) := $$(value $(name))))
export $(TYPED)
# What make would take without a word, and then do as if it had not been typed: CALIBRATION=x for CALIB=x.
OTHERS := PYTHON PIP_FLAGS WORKERS ARGS SHARED PEERS PEERS_MODELS PEERS_SHAPES PROFILE_FILES VENV DOCS SETUP_LOCKED SHELL
UNKNOWN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
UNKNOWN := $(firstword $(filter-out $(TYPED) $(OTHERS),$(UNKNOWN)))
MEANT := $(filter $(UNKNOWN)%,$(TYPED)) $(foreach name,$(TYPED),$(if $(filter $(name)%,$(UNKNOWN)),$(name)))
# A misspelled one, such as MODLE; quotes of the shell are no letters of a name.
LIKE = $(shell $(PYTHON) -c 'import sys, difflib; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1))' \
  '$(UNKNOWN)' $(TYPED))
MEANT := $(or $(strip $(MEANT)),$(if $(UNKNOWN),$(if $(findstring ',$(UNKNOWN)),,$(LIKE))))
$(if $(UNKNOWN),$(error unknown variable $(UNKNOWN); $(if $(strip $(MEANT)),did you mean $(strip $(MEANT))? )'make help' lists all))
# The shell reads it from the environment, inside quotes: $(call flags,BATCH=batch) is ${BATCH:+--batch="$BATCH"}.
flags = $(foreach pair,$(1),$${$(call variable,$(pair)):+--$(call option,$(pair))="$$$(call variable,$(pair))"})

# Bytecode is written when a module is first imported, not for all of torch at installation: half a minute less. A machine
# that forbids it would compile torch anew at every start.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:
	@sed -n 's/^#| \{0,1\}//p' Makefile

# ---- the compiler ----------------------------------------
engine: setup
	@$(VENV)/bin/qdq compile $(call flags,$(ENGINE_OPTIONS)); code=$$?; \
	if [ $$code -eq 3 ]; then echo "qdq exited with 3: done as far as this machine can; see above for what it lacks"; fi; \
	exit $$code

.PHONY: serve
serve: setup
	@set -- $(call flags,$(filter-out OUT=out,$(ENGINE_OPTIONS))); \
	  if [ $$# -gt 0 ] || ! ls -d -- "$${OUT:-build}"/*/model_repository "$${OUT:-build}"/*/*/model_repository \
	  2>/dev/null | grep -q .; then $(MAKE) --no-print-directory engine; fi
	@$(VENV)/bin/qdq serve $${OUT:+"$$OUT"}

bench: engine
	@$(VENV)/bin/qdq bench $(call flags,$(ENGINE_OPTIONS))

# Dynamic quantization from a fine-tuning to a table; DATA is a folder with MRPC's train.tsv and dev.tsv.
.PHONY: walkthrough
walkthrough: setup
	@$(VENV)/bin/python examples/walkthrough.py --data_dir="$$DATA" $${MODEL:+--model_name_or_path="$$MODEL"} \
	  --output_dir="$${OUT:-build/walkthrough}"

# On the GPU of this machine, a T4 or another: the three plans are built where they are not up to date, then raced. The
# variables of `engine` hold here, too; without a GPU the first command says what is missing.
bench-t4: export OUT := $(or $(OUT),build/bench-t4)
bench-t4: setup
	@$(VENV)/bin/qdq compile $(call flags,$(filter-out TARGET=%,$(ENGINE_OPTIONS))) --target tensorrt && \
	$(VENV)/bin/qdq variants --out="$$OUT" --target tensorrt && \
	$(VENV)/bin/qdq bench --engine="$$OUT" $(call flags,BATCH=batch SEQ=sequence); code=$$?; \
	if [ $$code -eq 3 ]; then echo "qdq exited with 3: done as far as this machine can; see above for what it lacks"; fi; \
	exit $$code

# The figures of README.md, measured by these commands on an otherwise idle machine. Models and data beside the
# repository are research-only and may be absent; their rows then stay as they are.
SHARED := ../shared
RESULT = $(VENV)/bin/qdq compile --json --bench-seconds 60 --out build/results/$(1)
results: setup
	@mkdir -p docs/results build
	rm -rf build/results
	@set -e; for target in openvino onnxruntime; do \
	  $(call RESULT,all-MiniLM-L6-v2) --target $$target > build/outcome.json; \
	  mv build/outcome.json docs/results/all-MiniLM-L6-v2-$$target.json; \
	  if [ -d $(SHARED)/models ]; then \
	    $(call RESULT,minilm-mrpc) --target $$target --model $(SHARED)/models/minilm-mrpc \
	      --calibration $(SHARED)/data/mrpc/train.tsv --eval-data $(SHARED)/data/mrpc/dev.tsv > build/outcome.json; \
	    mv build/outcome.json docs/results/minilm-mrpc-$$target.json; \
	  fi; \
	done
	@$(VENV)/bin/python -m qdq.studies.pages

# Our engines and the tools a user would pick instead, in an environment of its own: NNCF pins packages of ours. The tables
# of README.md come from docs/results/peers/, one file per model and kind of CPU: rows of a CPU that is not here stay.
PEERS := build/peers-venv
PEERS_MODELS ?= minilm-mrpc minilm-conll bert-base
PEERS_SHAPES ?= 40x128,1x128,8x128,40x16,8x384
PEERS_RUN = $(PEERS)/bin/python -m qdq.studies.peers.race --json docs/results/peers --texts 40x128 --work build/peers/$(1)
PEERS_MRPC = --calibration $(SHARED)/data/mrpc/train.tsv --eval-data $(SHARED)/data/mrpc/dev.tsv
PEERS_CONLL = --calibration $(SHARED)/data/conll2003/train.txt --eval-data $(SHARED)/data/conll2003/valid.txt
.PHONY: bench-peers-minilm-mrpc bench-peers-minilm-conll bench-peers-bert-base
bench-peers: $(PEERS)/.installed
	@mkdir -p docs/results/peers
	@[ -d $(SHARED)/models ] || { echo "bench-peers measures on $(SHARED)/models and $(SHARED)/data, which are not here; for a" \
	  "model of your own: $(PEERS)/bin/python -m qdq.studies.peers.race --help"; exit 1; }
	@$(MAKE) --no-print-directory $(PEERS_MODELS:%=bench-peers-%)
	@$(PEERS)/bin/python -m qdq.studies.pages

bench-peers-minilm-mrpc:
	@$(call PEERS_RUN,minilm-mrpc) --model $(SHARED)/models/minilm-mrpc $(PEERS_MRPC) --shapes $(PEERS_SHAPES)

bench-peers-minilm-conll:  # sentences of about 20 tokens
	@$(call PEERS_RUN,minilm-conll) --model $(SHARED)/models/minilm-conll $(PEERS_CONLL) --rounds 6

bench-peers-bert-base:  # minutes a round with everyone: those that matter
	@$(call PEERS_RUN,bert-base) --model random:bert-base $(PEERS_MRPC) --rounds 3 --eval-samples 80 \
	  --only qdq-openvino qdq-onnxruntime nncf nncf-static openvino-fp32 onnxruntime-fp32

# Our TensorRT graph and other tools' in NVIDIA's compiler, which needs no GPU. The table of docs/tensorrt.md.
compare-compiled: $(PEERS)/.modelopt
	@mkdir -p docs/results/compiled
	@[ -d $(SHARED)/models ] || { echo "compare-compiled compiles $(SHARED)/models, which are not here; for a model of your" \
	  "own: $(PEERS)/bin/python -m qdq.studies.peers.compiled --help"; exit 1; }
	@$(PEERS)/bin/python -m qdq.studies.peers.compiled --model $(SHARED)/models/minilm-mrpc \
	  --calibration $(SHARED)/data/mrpc/train.tsv --eval-data $(SHARED)/data/mrpc/dev.tsv \
	  --json docs/results/compiled/minilm-mrpc.json
	@$(PEERS)/bin/python -m qdq.studies.pages

prove: setup
	@$(VENV)/bin/python -m qdq.studies.prove

# The cost pictures of docs/performance.md, on the same terms. PROFILE_FILES= adds engines to compare with, such as
# NNCF=path/to/model.xml.
profile: setup
	@set -e; if [ -d $(SHARED)/models ]; then \
	  $(call RESULT,minilm-mrpc) --target openvino --model $(SHARED)/models/minilm-mrpc \
	    --calibration $(SHARED)/data/mrpc/train.tsv --eval-data $(SHARED)/data/mrpc/dev.tsv > /dev/null; \
	  $(VENV)/bin/qdq profile --steps --output docs/results/performance/minilm-mrpc \
	    build/results/minilm-mrpc/model.qdq.onnx $(PROFILE_FILES); \
	fi
	@$(VENV)/bin/python -m qdq.studies.pages

accuracy: setup
	@$(VENV)/bin/python -m qdq.studies.accuracy --shared $(SHARED)

.PHONY: compression table auto
compression: setup
	@$(VENV)/bin/python -m qdq.studies.compression --shared $(SHARED)

# The table that the compression documents print: FP32, INT8, pruned and both, three tasks in two languages.
table: setup
	@$(VENV)/bin/python -m qdq.studies.table --shared $(SHARED)
	@$(VENV)/bin/python -m qdq.studies.pages

# The automatic strategy beside the documented default by hand, 30 minutes each for two models. The table of docs/compression.md.
auto: setup
	@$(VENV)/bin/python -m qdq.studies.auto --shared $(SHARED)

# ---- checks ----------------------------------------
# A file's tests stay in one process, because they share what is costly to build; files start in alphabetical order,
# which is the long end-to-end ones first.
WORKERS ?= 2
test: lint type docs
	@$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Instructions are hidden from every program of the tests, not emulated; see tests/without_avx512/run.
test-avx2: setup
	@tests/without_avx512/run $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-gpu: setup
	@$(VENV)/bin/python -m pytest -m gpu -rs $(ARGS)

# The site's tools are no part of .venv: nobody needs them to compile a model.
DOCS := build/docs-venv
docs: $(DOCS)/.installed
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml
	@echo "build/site/index.html"

$(DOCS)/.installed: requirements-docs.txt
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install $(PIP_FLAGS) -r requirements-docs.txt
	@touch $@

lint: setup
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m ruff format --check .
	@$(VENV)/bin/lint-imports

type: setup
	@$(VENV)/bin/python -m mypy

# ---- installation ----------------------------------------
# .venv/.installing exists from before the first change until everything has been imported once, and becomes the stamp by
# being renamed. A set-up that was interrupted leaves it behind and starts again from nothing; a change of the pins (or a
# .venv made by hand) only adds what differs. A second make waits for the first one's lock, then finds the stamp.
STAMP := $(VENV)/.installed
STARTED := $(VENV)/.installing
PINS := pyproject.toml constraints.txt requirements-demo.txt requirements-serve.txt
TORCH := $(shell grep -o 'torch==[0-9.]*' pyproject.toml) $${TORCH_INDEX:+--index-url="$$TORCH_INDEX"}
# Builds run in .venv itself, so their tools come first: seqeval's source archive asks setuptools-scm for its version.
BUILD_TOOLS := setuptools setuptools-scm
DISK_MB := 2600
PIP = $(VENV)/bin/python -m pip install --no-compile $(PIP_FLAGS)

setup: $(STAMP)

ifndef SETUP_LOCKED
$(STAMP): $(PINS)
	@$(if $(shell command -v flock),flock Makefile) $(MAKE) --no-print-directory SETUP_LOCKED=1 $(STAMP)
else
$(STAMP): $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than 3.11; name another one: make setup PYTHON=python3.11"; exit 1; }
	@[ -e $(VENV)/bin ] || $(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free >> 20; \
	  sys.exit(f"{free} MB are free here and $(VENV) takes $(DISK_MB): free some space" if free < $(DISK_MB) else 0)'
	@if [ -e $(STARTED) ] || ! $(VENV)/bin/python -c '' 2>/dev/null; then \
	  echo "[1/4] creating $(VENV): 800 MB to download, $(DISK_MB) MB on disk; with 100 Mbit/s about two minutes"; \
	  rm -rf $(VENV)/bin $(VENV) && mkdir $(VENV) && touch $(STARTED) && $(PYTHON) -m venv $(VENV) || \
	    { echo "cannot create $(VENV); if python's venv module is missing, on Debian: apt install python3-venv"; exit 1; } \
	fi
	@rm -f $(STAMP) && touch $(STARTED)
	@echo "[2/4] installing torch (200 MB; gigabytes if its CUDA build is taken: see TORCH_INDEX in 'make help')"
	@$(PIP) -c constraints.txt $(BUILD_TOOLS)
	@$(PIP) --no-deps $(TORCH)
	@echo "[3/4] installing everything else, as pinned in constraints.txt (600 MB)"
	@$(PIP) -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@$(PIP) --no-deps --require-hashes -r requirements-demo.txt
	@rm -rf $(VENV)/serve && $(PIP) --no-deps --target $(VENV)/serve -r requirements-serve.txt
	@echo "[4/4] importing it once"
	@$(VENV)/bin/python -W ignore -c 'import torch.onnx, transformers.models.bert.modeling_bert, pytorch_quantization.nn, \
	  onnxscript, onnx_graphsurgeon, polygraphy, onnxruntime, openvino'
	@echo "set up in $$(($$(date +%s) - $$(stat -c %Y $(STARTED)))) s" && mv $(STARTED) $(STAMP)
endif

# NNCF beside everything of ours.
$(PEERS)/.installed: $(PINS) requirements-peers.txt
	@mkdir -p build && rm -rf $(PEERS) && $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt $(BUILD_TOOLS)
	@$(PEERS)/bin/python -m pip install $(PIP_FLAGS) --no-deps $(TORCH)
	@$(PEERS)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt --no-build-isolation -e '.[cpu,rtx,triton]' \
	  -r requirements-peers.txt
	@$(PEERS)/bin/python -m pip install $(PIP_FLAGS) --no-deps --require-hashes -r requirements-demo.txt
	@touch $@

$(PEERS)/.modelopt: $(PEERS)/.installed requirements-modelopt.txt
	@$(PEERS)/bin/python -m pip install $(PIP_FLAGS) --no-deps -r requirements-modelopt.txt
	@touch $@

# A new lock: what pip chooses today within pyproject.toml's ranges. "+cpu" names a build of torch, not a version.
lock: LOCKED := build/lock
lock:
	@$(PYTHON) -m venv --clear $(LOCKED)
	@$(LOCKED)/bin/pip install $(PIP_FLAGS) --upgrade $(BUILD_TOOLS)
	@$(LOCKED)/bin/pip install $(PIP_FLAGS) --no-deps $(TORCH)
	@$(LOCKED)/bin/pip install $(PIP_FLAGS) --no-build-isolation -e '.[$(EXTRAS)]'
	@echo "# Every package of 'make setup', written by 'make lock' with $$($(LOCKED)/bin/python --version)." > $(LOCKED)/new
	@$(LOCKED)/bin/pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' >> $(LOCKED)/new
	@mv $(LOCKED)/new constraints.txt

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) *.egg-info
