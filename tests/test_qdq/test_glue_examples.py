"""The walkthrough of dynamic quantization as it is printed: GLUE's files, fine-tuning, evaluation, the saved model."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib
import io
import json
import threading
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from qdq.errors import ConfigError, DataError, ModelError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Load = Callable[[str], ModuleType]
HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Load:
    """`example(name)`: a script as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture
def mrpc(tmp_path: Path, sentences: tuple[str, ...]) -> Path:
    """glue_data/MRPC with train.tsv and dev.tsv."""
    folder = tmp_path / "glue_data" / "MRPC"
    folder.mkdir(parents=True)
    rows = [f"{n % 2}\t{n}\t{n + 100}\t{text}\t{sentences[n - 1]}" for n, text in enumerate(sentences)]
    (folder / "train.tsv").write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    (folder / "dev.tsv").write_text("\n".join([HEADER, *rows[:13]]) + "\n", encoding="utf-8")
    return folder


# Downloads, from a server of the test's own


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of the files in a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Print nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A mirror of GLUE's files and its folder: MRPC of three rows, SST-2, and archives that are none."""
    files, texts = tmp_path / "mirror" / "glue" / "data", tmp_path / "mirror" / "senteval" / "senteval_data"
    files.mkdir(parents=True)
    texts.mkdir(parents=True)
    rows = [f'{n % 2}\t{n}\t{n + 10}\tfirst {n} \u2028 " here\tsecond {n}' for n in range(3)]
    for name in ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"):
        (texts / name).write_text("\ufeff" + "\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    (files / "mrpc_dev_ids.tsv").write_text("1\t11\n", encoding="utf-8")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("train", "dev", "test"):
            archive.writestr(f"SST-2/{name}.tsv", "sentence\tlabel\na film\t1\n")
        archive.writestr("SST-2/original/README.txt", "read me\n")
    (files / "SST-2.zip").write_bytes(packed.getvalue())
    (files / "RTE.zip").write_bytes(b"<html>no such page</html>")
    with zipfile.ZipFile(files / "CoLA.zip", "w") as archive:
        archive.writestr("../../outside.tsv", "a\tb\n")
    with served(tmp_path / "mirror") as address:
        yield address, tmp_path / "mirror"


@pytest.mark.document_row("001/2", "001/3")
def test_glue_files_are_downloaded_by_name(example: Load, mirror: tuple[str, Path], tmp_path: Path) -> None:
    """`--data_dir='./glue_data' --tasks='MRPC'`, as printed."""
    download, data = example("download_glue_data"), tmp_path / "glue_data"
    words = [f"--data_dir={data}", "--tasks=MRPC,SST-2", f"--url={mirror[0]}"]
    assert download.main(words) == [data / "MRPC", data / "SST-2"]
    names = {path.name for path in (data / "MRPC").iterdir()}
    assert names == {
        *("dev.tsv", "test.tsv", "train.tsv", "dev_ids.tsv"),
        *("msr_paraphrase_test.txt", "msr_paraphrase_train.txt"),
    }
    train = (data / "MRPC" / "train.tsv").read_text(encoding="utf-8").split("\n")
    assert train[0] == HEADER and [line.split("\t")[1] for line in train[1:-1]] == ["0", "2"]
    assert (data / "MRPC" / "dev.tsv").read_text(encoding="utf-8").split("\n")[1].startswith("1\t1\t11\tfirst 1")
    test = (data / "MRPC" / "test.tsv").read_text(encoding="utf-8").split("\n")
    assert test[0].startswith("index\t#1 ID") and [line[0] for line in test[1:-1]] == ["0", "1", "2"]
    assert len(example("glue").read(data / "MRPC", "train")) == 2  # the product reads them
    assert (data / "SST-2" / "original" / "README.txt").is_file()
    assert download.main(words) == []  # what is there stays


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("RTE", "RTE.zip: is no zip archive"),
        ("CoLA", "CoLA.zip: is not the one folder of a GLUE task"),
        ("QNLI", r"QNLIv2.zip: cannot be downloaded \(.*\); name a mirror with --url"),
    ],
)
def test_downloads_that_fail_leave_nothing(
    example: Load, mirror: tuple[str, Path], tmp_path: Path, task: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        example("download_glue_data").main(["--data_dir", str(tmp_path / "new"), "--tasks", task, "--url", mirror[0]])
    assert not list((tmp_path / "new").glob("*")) and not (tmp_path.parent / "outside.tsv").exists()


def test_without_a_network_the_way_out_is_named(example: Load, tmp_path: Path) -> None:
    words = ["--data_dir", str(tmp_path / "new"), "--tasks", "MRPC", "--url", "http://127.0.0.1:9"]
    with pytest.raises(
        DataError, match=r"http://127.0.0.1:9/senteval/.*cannot be downloaded .* copy the task's folder"
    ):
        example("download_glue_data").main(words)
    with pytest.raises(ConfigError, match="--tasks: unknown value 'MRPCC'; did you mean 'MRPC'"):
        example("download_glue_data").main(["--tasks", "MRPCC"])


# Fine-tuning


def finetune(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    """run_glue.py's line as printed; length and steps are of a tiny model."""
    return [
        *("--model_type", "bert", "--model_name_or_path", str(model), "--task_name", "MRPC"),
        *("--do_train", "--do_eval", "--do_lower_case", "--data_dir", str(data), "--max_seq_length", "32"),
        *("--per_gpu_eval_batch_size=8", "--per_gpu_train_batch_size=8", "--learning_rate", "2e-5"),
        *("--num_train_epochs", "1.0", "--output_dir", str(out), *more),
    ]


@pytest.fixture
def encoder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint("bert", "feature-extraction", num_hidden_layers=1)


@pytest.mark.document_row("001/5", "001/6", "001/7", "001/8")
def test_fine_tuning_writes_the_documented_files_and_caches_features(
    example: Load, encoder: Path, mrpc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = example("finetune_glue"), tmp_path / "out"
    first = script.main(finetune(encoder, mrpc, out, "--save_steps", "2"))
    assert set(first) == {"acc", "f1", "acc_and_f1"}
    names = {path.name for path in out.iterdir()}
    assert names >= {
        *("config.json", "training_args.bin", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
        *("eval_results.txt", "checkpoint-2", "checkpoint-4", "model.safetensors"),
    }
    assert f"acc = {first['acc']}" in (out / "eval_results.txt").read_text()
    vocabulary = (out / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert vocabulary[:3] == ["[PAD]", "[UNK]", "[CLS]"]
    # Features are kept beside the data, and made anew when asked for or when they are of something else
    cached = mrpc / f"cached_dev_{encoder.name}_32_mrpc"
    assert cached.is_file() and (mrpc / f"cached_train_{encoder.name}_32_mrpc").is_file()
    capsys.readouterr()
    assert script.main([*finetune(encoder, mrpc, tmp_path / "again"), "--save_steps", "0"]) == first
    assert f"Loading features from cached file {cached}" in " ".join(capsys.readouterr().err.split())
    evaluate = ["--model_name_or_path", str(encoder), "--data_dir", str(mrpc), "--output_dir", str(out), "--do_eval"]
    with pytest.raises(ConfigError, match="is no classifier yet"):
        script.main(evaluate)
    script.main([*finetune(encoder, mrpc, tmp_path / "third", "--overwrite_cache"), "--max_steps", "1"])
    assert f"Saving features into cached file {cached}" in " ".join(capsys.readouterr().err.split())
    lines = (mrpc / "dev.tsv").read_text(encoding="utf-8").splitlines()
    (mrpc / "dev.tsv").write_text("\n".join(lines[:5]) + "\n", encoding="utf-8")
    script.main([*finetune(encoder, mrpc, tmp_path / "third"), "--max_steps", "1"])
    assert "is of other data, another tokenizer or length; it is written anew" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_classifier_keeps_its_classes_when_it_is_evaluated(
    example: Load, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Its own order of names decides, not the alphabet of the labels in a file."""
    names = {0: "not_entailment", 1: "entailment"}
    model = tiny_checkpoint(num_hidden_layers=1, id2label=names, label2id={name: n for n, name in names.items()})
    script = example("finetune_glue")
    options = script.parse(["--data_dir", "d", "--output_dir", "o", "--do_eval", "--task_name", "RTE"])
    config = json.loads((model / "config.json").read_text())
    assert script.classes_of(options, config, "m") == ("not_entailment", "entailment")
    unnamed = {"architectures": ["BertForSequenceClassification"]}  # transformers writes no names of its own two
    assert script.classes_of(options, unnamed, "m") == ("entailment", "not_entailment")  # GLUE's order


def test_a_damaged_cache_is_written_anew(example: Load, encoder: Path, mrpc: Path) -> None:
    from transformers import AutoTokenizer

    glue, place = example("glue"), mrpc / "cached_dev_x_32_mrpc"
    place.write_bytes(b"\x80\x04nothing")
    examples, tokenizer = glue.read(mrpc, "dev"), AutoTokenizer.from_pretrained(encoder)
    given = {"label_list": ("0", "1"), "max_length": 32}
    made = glue.load_features(examples, tokenizer, place, False, **given)
    assert torch.load(place, weights_only=True) == made
    assert glue.load_features(examples, tokenizer, place, False, **given) == made
    with pytest.raises(DataError, match="example 1 has label 'yes', which is none of 0, 1"):
        glue.convert_examples_to_features([replace(examples[0], label="yes")], tokenizer, **given)


# The page's own code


@pytest.mark.document_row("001/4", "001/7", "001/8", "001/9", "001/10", "001/12", "001/13")
def test_the_printed_evaluation_and_the_saved_model(
    example: Load, tiny_checkpoint: Callable[..., Path], mrpc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As printed but for three lines: the imports of GLUE's functions, `return_dict`, and quantize_dynamic's home."""
    from transformers import BertForSequenceClassification, BertTokenizerFast

    from qdq.compress import quantize_dynamic

    glue = example("glue")
    torch.manual_seed(42)
    assert torch.__config__.parallel_info()
    configs = Namespace()
    configs.output_dir = str(tiny_checkpoint(num_hidden_layers=1)) + "/"
    configs.data_dir = str(mrpc)
    configs.model_name_or_path = "bert-base-uncased"
    configs.max_seq_length = 32
    configs.task_name = "MRPC".lower()
    configs.processor = glue.processors[configs.task_name]()
    configs.output_mode = glue.output_modes[configs.task_name]
    configs.label_list = configs.processor.get_labels()
    configs.device, configs.per_eval_batch_size, configs.overwrite_cache = "cpu", 8, False
    tokenizer = BertTokenizerFast.from_pretrained(configs.output_dir, do_lower_case=True)
    model = BertForSequenceClassification.from_pretrained(configs.output_dir, return_dict=False)
    model.to(configs.device)

    def load_and_cache_examples(args: Any, task: str, tokenizer: Any) -> TensorDataset:
        processor = glue.processors[task]()
        output_mode = glue.output_modes[task]
        name = list(filter(None, args.model_name_or_path.split("/"))).pop()
        cached = Path(args.data_dir) / f"cached_dev_{name}_{args.max_seq_length}_{task}"
        if cached.exists() and not args.overwrite_cache:
            features = torch.load(cached)
        else:
            features = glue.convert_examples_to_features(
                processor.get_dev_examples(args.data_dir),
                tokenizer,
                label_list=processor.get_labels(),
                max_length=args.max_seq_length,
                output_mode=output_mode,
                pad_token=tokenizer.convert_tokens_to_ids([tokenizer.pad_token])[0],
            )
            torch.save(features, cached)
        columns = ("input_ids", "attention_mask", "token_type_ids", "label")
        tensors = (torch.tensor([getattr(f, name) for f in features], dtype=torch.long) for name in columns)
        return TensorDataset(*tensors)

    def evaluate(args: Any, model: Any, tokenizer: Any) -> dict[str, float]:
        data = load_and_cache_examples(args, args.task_name, tokenizer)
        loss, preds, expected = 0.0, [], []
        for batch in DataLoader(data, sampler=SequentialSampler(data), batch_size=args.per_eval_batch_size):
            model.eval()
            with torch.no_grad():
                inputs = dict(zip(("input_ids", "attention_mask", "token_type_ids", "labels"), batch, strict=True))
                tmp_eval_loss, logits = model(**inputs)
                loss += tmp_eval_loss.mean().item()
            preds.append(logits.numpy())
            expected.append(inputs["labels"].numpy())
        found = np.argmax(np.concatenate(preds), axis=1)
        return dict(glue.glue_compute_metrics(args.task_name, found, np.concatenate(expected)))

    result = evaluate(configs, model, tokenizer)
    assert set(result) == {"acc", "f1", "acc_and_f1"}
    assert evaluate(configs, model, tokenizer) == result  # of the cached file
    quantized_model = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert "DynamicQuantizedLinear(in_features=32, out_features=32, dtype=torch.qint8" in repr(quantized_model)
    assert repr(quantized_model).startswith("BertForSequenceClassification(")
    sizes = []
    for one in (model, quantized_model):
        torch.save(one.state_dict(), tmp_path / "temp.p")
        sizes.append((tmp_path / "temp.p").stat().st_size)
    assert sizes[1] < sizes[0]
    scores = evaluate(configs, quantized_model, tokenizer)
    # Saved in the documented layout, and the same to the bit when it is loaded again
    quantized_output_dir = str(tmp_path / "quantized") + "/"
    quantized_model.save_pretrained(quantized_output_dir)
    assert sorted(path.name for path in Path(quantized_output_dir).iterdir()) == ["config.json", "pytorch_model.bin"]
    again = type(quantized_model).from_pretrained(quantized_output_dir)
    again.config.return_dict = False
    assert evaluate(configs, again, tokenizer) == scores
    state, other = quantized_model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()


def test_a_damaged_quantized_model_is_refused(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    from qdq.compress import DynamicModel, quantize_dynamic

    model = BertForSequenceClassification.from_pretrained(tiny_checkpoint(num_hidden_layers=1))
    quantize_dynamic(model).save_pretrained(tmp_path / "q")  # type: ignore[operator]
    weights = tmp_path / "q" / "pytorch_model.bin"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x80\x02cos\nsystem\n(S'true'\ntR."):
        weights.write_bytes(damaged)
        with pytest.raises(ModelError, match="cannot be loaded as a dynamically quantized model"):
            DynamicModel.from_pretrained(tmp_path / "q")
    torch.save(model.state_dict(), weights)  # of a model that is not quantized
    with pytest.raises(ModelError, match="cannot be loaded as a dynamically quantized model"):
        DynamicModel.from_pretrained(tmp_path / "q")
    with pytest.raises(ModelError, match="has no dynamic_quantization"):
        DynamicModel.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="makes INT8 of linears"):
        quantize_dynamic(model, {torch.nn.Embedding})


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.document_row("001/10")
def test_the_printed_sizes_of_a_bert_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`print_size_of_model` as printed: 437.98 MB before, 181.43 MB after; the weights are random."""

    from transformers import BertConfig, BertForSequenceClassification
    from transformers.initialization import no_init_weights

    def size_of_model(model: torch.nn.Module) -> float:
        torch.save(model.state_dict(), "temp.p")
        size = Path("temp.p").stat().st_size / 1e6
        Path("temp.p").unlink()
        return size

    monkeypatch.chdir(tmp_path)
    with no_init_weights():
        model = BertForSequenceClassification(BertConfig())
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    assert size_of_model(model) == pytest.approx(437.98, abs=0.1)
    quantized_model = torch.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert size_of_model(quantized_model) == pytest.approx(181.43, abs=0.2)
