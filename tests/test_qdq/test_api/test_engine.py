"""`qdq.load`: arrays, pipelines, sentence embeddings and answers, beside the same model in transformers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import qdq
from qdq.errors import BuildError, ConfigError, WorkError

MODELS = Path(__file__).resolve().parents[4] / "shared" / "models"
TEXTS = ["the cat finds the blue house .", "our teacher wants a warm meal again and again ."]
SMALL = {"samples": 16, "batch": 2, "sequence": 32, "threads": 1, "bench_seconds": 0.2}

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def built(tiny_checkpoint: Any, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`built(task)`: the work directory of a tiny model of that task; each is compiled once."""
    known: dict[str, Path] = {}

    def build(task: str, calibration: Any = None, model: Path | None = None) -> Path:
        if task not in known:
            source = model or tiny_checkpoint("bert", task, num_hidden_layers=1)
            out = tmp_path_factory.mktemp("api") / "work"
            options = {**SMALL, "target": "onnxruntime", "placement": "linear"}
            qdq.compile(source, calibration=calibration or text_file, out=out, **options)
            known[task] = out
        return known[task]

    return build


def test_arrays_in_arrays_out(compiled: Path) -> None:
    engine = qdq.load(compiled / "work", threads=1)
    tokens = engine.tokenizer(TEXTS, padding=True, return_tensors="np")
    found = engine(dict(tokens))
    assert list(found) == list(engine.outputs) == ["logits"]
    assert found["logits"].shape == (2, 2) and found["logits"].dtype == np.float32
    # A mask and types that are all ones and zeros need not be given.
    one = {"input_ids": tokens["input_ids"][:1, :5]}
    whole = {**one, "attention_mask": np.ones((1, 5), int), "token_type_ids": np.zeros((1, 5), int)}
    np.testing.assert_array_equal(engine(one)["logits"], engine(**whole)["logits"])


def test_the_target_and_the_float_model_can_be_named(compiled: Path) -> None:
    work = compiled / "work"
    assert qdq.load(work).target == "onnxruntime"  # the last that was compiled
    engine = qdq.load(work / "openvino", threads=1)
    assert (engine.target, engine.task, engine.precision) == ("openvino", "text-classification", "int8")
    floating = qdq.load(work, target="openvino", precision="fp32", threads=1)
    ids = {"input_ids": floating.tokenizer(TEXTS[0], return_tensors="np")["input_ids"]}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(compiled / "tiny-bert")
    expected = model(**floating.tokenizer(TEXTS[0], return_tensors="pt")).logits.detach().numpy()
    np.testing.assert_allclose(floating(ids)["logits"], expected, atol=1e-4)
    assert np.abs(engine(ids)["logits"] - expected).max() > 1e-5  # INT8 is not the float model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs_embeds": np.zeros((1, 2, 3))}, "has no 'inputs_embeds'"),
        ({"input_ids": np.ones((1, 3)), "output_attentions": True}, "has no 'output_attentions'"),
        ({"attention_mask": np.ones((1, 3))}, "needs input_ids"),
        ({"input_ids": np.ones((1, 2, 3))}, "rank 2"),
    ],
)
def test_an_input_the_graph_has_not_is_refused(compiled: Path, given: dict[str, Any], message: str) -> None:
    engine = qdq.load(compiled / "work", threads=1)
    with pytest.raises((ConfigError, BuildError), match=message):
        engine(given)


def test_a_folder_that_holds_no_engine_says_what_to_run(compiled: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="not the work directory of a compile"):
        qdq.load(tmp_path)
    with pytest.raises(WorkError, match=r"qdq build --out .* --target tensorrt"):
        qdq.load(compiled / "work", target="tensorrt")
    with pytest.raises(ConfigError, match="openvino"):
        qdq.load(compiled / "work", target="openvin")


def test_text_classification_pipeline(compiled: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = qdq.load(compiled / "work", precision="fp32", threads=1)
    with caplog.at_level(logging.WARNING):
        mine = transformers.pipeline("text-classification", model=engine, tokenizer=engine.tokenizer, device="cpu")
    assert "not supported" not in caplog.text
    model = transformers.AutoModelForSequenceClassification.from_pretrained(compiled / "tiny-bert")
    theirs = transformers.pipeline("text-classification", model=model, tokenizer=engine.tokenizer, device="cpu")
    for options in ({}, {"batch_size": 2}, {"top_k": None}):
        _same(mine(TEXTS, **options), theirs(TEXTS, **options))
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    _same(mine(pair), theirs(pair))
    assert "Engine" in repr(mine)
    # The INT8 engine answers in the same form.
    quick = qdq.load(compiled / "work", threads=1)
    found = transformers.pipeline("text-classification", model=quick, tokenizer=quick.tokenizer)(TEXTS)
    assert [set(answer) for answer in found] == [{"label", "score"}] * 2


@pytest.mark.parametrize(
    ("task", "name", "texts", "options"),
    [
        ("token-classification", "ner", TEXTS, {"aggregation_strategy": "simple"}),
        ("fill-mask", "fill-mask", ["the [MASK] finds the blue house ."], {"top_k": 3}),
        ("feature-extraction", "feature-extraction", TEXTS, {}),
    ],
)
def test_pipelines_of_other_tasks(
    built: Build, tiny_checkpoint: Any, task: str, name: str, texts: list[str], options: dict[str, Any]
) -> None:
    engine = qdq.load(built(task), precision="fp32", threads=1)
    auto = {
        "token-classification": transformers.AutoModelForTokenClassification,
        "fill-mask": transformers.AutoModelForMaskedLM,
        "feature-extraction": transformers.AutoModel,
    }[task]
    model = auto.from_pretrained(tiny_checkpoint("bert", task, num_hidden_layers=1)).eval()
    mine = transformers.pipeline(name, model=engine, tokenizer=engine.tokenizer, device="cpu", **options)
    theirs = transformers.pipeline(name, model=model, tokenizer=engine.tokenizer, device="cpu", **options)
    _same(mine(texts), theirs(texts))
    quick = qdq.load(built(task), threads=1)
    assert transformers.pipeline(name, model=quick, tokenizer=quick.tokenizer, **options)(texts)


def test_a_question_is_answered_as_the_floating_point_model_would(built: Build, tiny_checkpoint: Any) -> None:
    pairs = [(question, context) for question in TEXTS for context in TEXTS] * 5
    engine = qdq.load(built("question-answering", calibration=pairs), precision="fp32", threads=1)
    context = " ".join(TEXTS * 9)  # longer than the model's 64 positions
    found = engine.answer("the cat", context, longest=5)
    assert context[found.start : found.end] == found.answer and 0 < found.score <= 1
    # transformers 5 has no pipeline for it any more, so its rule is written out for one window.
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(
        tiny_checkpoint("bert", "question-answering", num_hidden_layers=1)
    )
    tokens = engine.tokenizer("the cat", TEXTS[0], return_tensors="pt", return_offsets_mapping=True)
    offsets = tokens.pop("offset_mapping")[0].tolist()
    outputs = model(**tokens)
    inside = [index for index, side in enumerate(tokens.sequence_ids(0)) if side == 1]
    start, end = (values[0].softmax(-1).tolist() for values in (outputs.start_logits, outputs.end_logits))
    spans = [(start[i] * end[j], i, j) for i in inside for j in inside if i <= j < i + 5]
    score, first, last = max(spans)
    short = engine.answer("the cat", TEXTS[0], longest=5)
    assert (short.start, short.end) == (offsets[first][0], offsets[last][1])
    assert short.score == pytest.approx(score, rel=1e-3)
    # As a model it returns start and end logits.
    assert set(engine(**tokens)) == {"start_logits", "end_logits"}
    with pytest.raises(ConfigError, match="is no embedding model"):
        engine.encode("a text")


@pytest.fixture(scope="module")
def embedder(as_embedder: Any, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny embedding model with prompts, and its work directory."""
    place = tmp_path_factory.mktemp("embedder")
    prompts = {"query": "the old river ", "document": ""}
    model = as_embedder(place / "embedder", prompts=prompts, default_prompt_name="query")
    qdq.compile(model, calibration=text_file, out=place / "work", target="onnxruntime", **SMALL)
    return model, place / "work"


def test_texts_are_encoded_with_the_models_pooling_and_prompts(embedder: tuple[Path, Path]) -> None:
    model, work = embedder
    engine = qdq.load(work, precision="fp32", threads=1)
    plain = transformers.AutoModel.from_pretrained(model)

    def expected(text: str) -> Any:
        tokens = engine.tokenizer(text, return_tensors="pt")
        vector = plain(**tokens).last_hidden_state[0].mean(0).detach().numpy()
        return vector / np.linalg.norm(vector)

    found = engine.encode(TEXTS)
    assert found.shape == (2, 32) and found.dtype == np.float32
    for vector, text in zip(found, TEXTS, strict=True):
        np.testing.assert_allclose(vector, expected(f"the old river {text}"), atol=1e-4)
    for vector, text in zip(engine.encode(TEXTS, prompt_name="document", batch_size=1), TEXTS, strict=True):
        np.testing.assert_allclose(vector, expected(text), atol=1e-4)
    np.testing.assert_allclose(engine.encode(TEXTS[0], prompt="a "), expected(f"a {TEXTS[0]}"), atol=1e-4)
    short = engine.encode(TEXTS[0], truncate_dim=8, normalize_embeddings=True)
    assert short.shape == (8,) and np.linalg.norm(short) == pytest.approx(1, abs=1e-5)
    assert engine.encode([]).shape[0] == 0
    with pytest.raises(ConfigError, match=r"no prompt 'querry'.*query"):
        engine.encode(TEXTS, prompt_name="querry")


def test_an_embedding_keeps_its_value_under_pooling_once_more(embedder: tuple[Path, Path]) -> None:
    engine = qdq.load(embedder[1], threads=1)
    tokens = engine.tokenizer(TEXTS, padding=True, return_tensors="pt")
    outputs, mask = engine(**tokens), tokens["attention_mask"][:, :, None].float()
    mean = (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(mean, outputs.sentence_embedding, atol=1e-6)
    extracted = transformers.pipeline("feature-extraction", model=engine, tokenizer=engine.tokenizer)(TEXTS[0])
    np.testing.assert_allclose(extracted[0][0], engine.encode(TEXTS[0], prompt=""), atol=1e-6)


def test_embeddings_are_those_of_sentence_transformers(embedder: tuple[Path, Path]) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model, work = embedder
    theirs = library.SentenceTransformer(str(model), device="cpu")
    engine = qdq.load(work, precision="fp32", threads=1)
    for options in ({}, {"prompt_name": "document"}, {"prompt": "a "}):
        np.testing.assert_allclose(engine.encode(TEXTS, **options), theirs.encode(TEXTS, **options), atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not MODELS.is_dir(), reason="../shared/models is not here")
def test_a_real_model_finds_names(tmp_path: Path) -> None:
    texts = ["Angela Merkel lives in Berlin .", "The bank of England raised rates ."] * 4
    qdq.compile(MODELS / "minilm-conll", calibration=texts, out=tmp_path / "work", target="onnxruntime", **SMALL)
    engine = qdq.load(tmp_path / "work")
    tagger = transformers.pipeline("ner", model=engine, tokenizer=engine.tokenizer, aggregation_strategy="simple")
    found = [(entity["entity_group"], entity["word"]) for entity in tagger(texts[0])]
    assert found == [("PER", "angela merkel"), ("LOC", "berlin")]


@pytest.mark.slow
@pytest.mark.skipif(not MODELS.is_dir(), reason="../shared/models is not here")
def test_a_real_model_answers_a_question(tmp_path: Path) -> None:
    context = "The Eiffel Tower was built by the company of Gustave Eiffel between 1887 and 1889 in Paris ."
    pairs = [("Who built the tower ?", context), ("Where is it ?", context)] * 4
    qdq.compile(MODELS / "minilm-squad", calibration=pairs, out=tmp_path / "work", target="onnxruntime", **SMALL)
    answer = qdq.load(tmp_path / "work").answer("Where was the Eiffel Tower built ?", context)
    assert answer.answer == "Paris" and context[answer.start : answer.end] == "Paris"


def _same(mine: Any, theirs: Any) -> None:
    """Assert that two answers of a pipeline are the same but for the rounding of their numbers."""
    if isinstance(theirs, list | tuple):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            _same(one, other)
    elif isinstance(theirs, dict):
        assert mine.keys() == theirs.keys()
        for key in theirs:
            _same(mine[key], theirs[key])
    elif isinstance(theirs, float | np.floating):
        assert mine == pytest.approx(theirs, abs=1e-4)
    else:
        assert mine == theirs
