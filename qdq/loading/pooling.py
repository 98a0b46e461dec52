"""The sentence-transformers head of a folder: what its files say, and from token states to one sentence embedding.

Read are ``modules.json``, the Pooling module's ``config.json``, ``sentence_bert_config.json`` and
``config_sentence_transformers.json`` as releases 0.3 to 6.2 write them. What cannot be computed is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qdq.errors import ModelError
from qdq.loading.source import read_json, read_object

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Mode = Literal["cls", "mean", "max", "mean_sqrt_len"]
# Switches of releases before 6, and the one key since: name of the mode -> ours
MODES: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
NAMED: dict[str, Mode] = {"cls": "cls", "mean": "mean", "max": "max", "mean_sqrt_len_tokens": "mean_sqrt_len"}
OTHER_MODES = ("pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken")
POOLING_KEYS = (
    *("word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"),
    *(*MODES, *OTHER_MODES),
)
LIBRARY = "sentence_transformers"
SETTINGS = "config_sentence_transformers.json"
# Of the Transformer module, by the families that old releases named the file after
TRANSFORMER = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Keys of that file which do not change a token state; any other one that is set is refused
PLAIN_KEYS = ("max_seq_length", "do_lower_case", "unpad_inputs", "module_output_name", "modality_config")

PROMPT = "default_prompt"  # attribute of a prepared tokenizer; `qdq.text.encode` puts it in front of texts
OUT_OF_REACH = 1.0e4  # more than any LayerNorm output, and a value FP16 has


@dataclass(frozen=True)
class Pooling:
    """Token states to one sentence embedding, as sentence-transformers' Pooling and Normalize modules compute it.

    Attributes:
        mode: which function of the token states.
        normalize: to length 1.
        skipped: leading tokens that do not count, those of the prompt where `include_prompt` is off.
        dimension: leading values of the embedding that are returned (``truncate_dim``), None for all.
    """

    mode: Mode
    normalize: bool
    skipped: int = 0
    dimension: int | None = None

    def apply(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, S, H] states and [B, S] mask to [B, H]; padded positions do not count."""
        from torch.nn.functional import normalize

        if self.skipped:
            states, attention_mask = states[:, self.skipped :], attention_mask[:, self.skipped :]
        pooled = self._pool(states, attention_mask[:, :, None].to(states.dtype))
        embedding = normalize(pooled, dim=-1) if self.normalize else pooled
        return embedding if self.dimension is None else embedding[:, : self.dimension]

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.mode == "cls":
            return states[:, 0]
        if self.mode == "max":
            return (states + (mask - 1.0) * OUT_OF_REACH).amax(dim=1)
        length = mask.sum(dim=1).clamp(min=1.0)  # a row without tokens gives zeros
        return (states * mask).sum(dim=1) / (length if self.mode == "mean" else length.sqrt())


@dataclass(frozen=True)
class Chain:
    """A sentence-transformers chain, as the files of its folder describe it.

    Attributes:
        mode, normalize, dimension: as of `Pooling`.
        include_prompt: the tokens of the prompt count.
        prompt: put in front of every text that is encoded without naming another one, "" for none.
        prompts: names of all prompts that have a text.
        texts: text of every prompt by name, "" for those without one.
        max_tokens: where its texts are cut, None where the tokenizer decides.
        lower_case: texts are put into lower case, whatever the tokenizer does.
        similarity: of two embeddings, as the model was trained for.
    """

    mode: Mode
    normalize: bool
    include_prompt: bool = True
    prompt: str = ""
    prompts: tuple[str, ...] = ()
    max_tokens: int | None = None
    lower_case: bool = False
    dimension: int | None = None
    similarity: str = SIMILARITIES[0]
    texts: Mapping[str, str] = field(default_factory=dict)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> Pooling:
        """Let `tokenizer` cut, lower-case and begin as the chain does; returns what is computed behind the encoder.

        Raises ModelError for a tokenizer that cannot do it, or that pads where the pooling looks for its tokens.
        """
        if self.max_tokens is not None:
            tokenizer.model_max_length = self.max_tokens
        if self.lower_case:
            _lower(tokenizer)
        skipped = 0 if self.include_prompt or not self.prompt else _prompt_tokens(tokenizer, self.prompt)
        if tokenizer.padding_side == "left" and (skipped or self.mode == "cls"):
            raise ModelError(
                f"{tokenizer.name_or_path}: padding on the left is not supported with this pooling; set padding_side "
                "to right in its tokenizer_config.json"
            )
        setattr(tokenizer, PROMPT, self.prompt)
        return Pooling(self.mode, self.normalize, skipped, self.dimension)

    def says(self) -> str:
        """Return what a user of the embeddings has to know of prompts, "" without any."""
        if self.prompt:
            counted = "" if self.include_prompt else ", whose tokens are left out of the embedding"
            return f"the default prompt {self.prompt!r} in front of every text{counted}"
        if not self.prompts:
            return ""
        lost = "" if self.include_prompt else "; include_prompt is off, so with one the embedding would be another"
        return f"texts without a prompt ({', '.join(self.prompts)} are not its default{lost})"


def read_chain(folder: Path) -> Chain | None:
    """The sentence-transformers chain a folder describes, or None without a pooling head.

    Raises ModelError for files that are damaged, and for what is not computed here.
    """
    modules = folder / "modules.json"
    if not modules.is_file():
        return None
    pooling, normalize = _modules(modules)
    if pooling is None:
        return None
    # The pooling's own file, the encoder's, and the whole model's
    config = folder / pooling / "config.json"
    settings = read_object(config)
    if unknown := sorted(settings.keys() - set(POOLING_KEYS)):
        raise ModelError(f"{config}: {unknown[0]} is no setting of a pooling that is supported; {_bare(modules)}")
    max_tokens, lower_case = _transformer(folder)
    path = folder / SETTINGS
    values = read_object(path) if path.is_file() else {}
    prompts, prompt, dimension = _settings(path, values)
    return Chain(
        mode=_mode(config, settings),
        normalize=normalize,
        include_prompt=_flag(config, settings, "include_prompt", True),
        prompt=prompt,
        prompts=tuple(name for name, text in prompts.items() if text),
        texts=prompts,
        max_tokens=max_tokens,
        lower_case=lower_case,
        dimension=dimension,
        similarity=_similarity(path, values),
    )


def _bare(modules: Path) -> str:
    return f"remove {modules.name} to compile the bare encoder"


def _modules(path: Path) -> tuple[str | None, bool]:
    """Folder of the Pooling module, None without one, and whether Normalize follows."""
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelError(f"{path}: is not a list of sentence-transformers modules; copy the checkpoint again")
    # Only Transformer -> Pooling (-> Normalize) can be computed
    kinds = []
    for entry in entries:
        package, _, kind = str(entry.get("type", "")).rpartition(".")
        if package.partition(".")[0] != LIBRARY:
            raise ModelError(
                f"{path}: module '{entry.get('type')}' is code of its own, which is never run; {_bare(path)}"
            )
        if kind not in ("Transformer", "Pooling", "Normalize", "Dropout"):
            raise ModelError(
                f"{path}: sentence-transformers module '{kind}' is not supported (Transformer, Pooling and Normalize "
                f"are); {_bare(path)}"
            )
        kinds.append(kind)
    counted = [kind for kind in kinds if kind != "Dropout"]  # nothing outside a training
    if counted not in (["Transformer"], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(
            f"{path}: the chain {' -> '.join(kinds) or 'without modules'} is not supported (Transformer -> Pooling -> "
            f"Normalize is); {_bare(path)}"
        )
    # The files of each lie where the list says
    places = {
        kind: entry.get("path", "1_Pooling" if kind == "Pooling" else "")
        for kind, entry in zip(kinds, entries, strict=True)
    }
    for kind, place in places.items():
        if not isinstance(place, str) or Path(place).name != place.rstrip("/") or place in (".", ".."):
            raise ModelError(f"{path}: the path of {kind} is {place!r}, no folder beside it; copy the checkpoint again")
    if places["Transformer"]:
        raise ModelError(
            f"{path}: its encoder lies in {path.parent / places['Transformer']}; move the files of that folder up, and "
            'set the path of the Transformer module to ""'
        )
    return places.get("Pooling"), "Normalize" in kinds


def _mode(path: Path, settings: Mapping[str, Any]) -> Mode:
    """The one mode of a Pooling module's settings; mean where they name none, as in the library."""
    switched = [key for key in (*MODES, *OTHER_MODES) if _flag(path, settings, key, False)]
    modes: Any = settings.get("pooling_mode", [MODES.get(key, key) for key in switched] or "mean")
    found = modes if isinstance(modes, list) else [modes]
    names: dict[Any, Mode] = NAMED if "pooling_mode" in settings else {mode: mode for mode in NAMED.values()}
    if len(found) != 1 or not isinstance(found[0], str) or found[0] not in names:
        raise ModelError(f"{path}: pooling must be exactly one of {', '.join(NAMED)}; found {found}")
    return names[found[0]]


def _transformer(folder: Path) -> tuple[int | None, bool]:
    """Tokens a text is cut to, and whether it is put into lower case."""
    path = next((folder / name for name in TRANSFORMER if (folder / name).is_file()), None)
    if path is None:
        return None, False
    settings = read_object(path)
    other = [key for key, value in settings.items() if value and key not in PLAIN_KEYS]
    if other and (other != ["transformer_task"] or settings["transformer_task"] != "feature-extraction"):
        raise ModelError(f"{path}: {other[0]} is not supported; leave it out, or remove modules.json")
    states = settings.get("module_output_name", "token_embeddings")
    modality = settings.get("modality_config", {"text": {"method_output_name": "last_hidden_state"}})
    if states != "token_embeddings" or _output(modality) != "last_hidden_state":
        raise ModelError(f"{path}: it does not return the last hidden states of a text, which the pooling here reads")
    most = settings.get("max_seq_length")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ModelError(f"{path}: max_seq_length is {most!r}; give a number of tokens")
    return most, _flag(path, settings, "do_lower_case", False)


def _output(modality: Any) -> Any:
    text = modality.get("text") if isinstance(modality, dict) else None
    return text.get("method_output_name") if isinstance(text, dict) else None


def _similarity(path: Path, settings: Mapping[str, Any]) -> str:
    value = settings.get("similarity_fn_name") or SIMILARITIES[0]
    if value not in SIMILARITIES:
        raise ModelError(f"{path}: similarity_fn_name is {value!r}; it must be one of {', '.join(SIMILARITIES)}")
    return str(value)


def _settings(path: Path, settings: Mapping[str, Any]) -> tuple[Mapping[str, str], str, int | None]:
    """Texts of the prompts by name, the default one's, and how much of an embedding is returned."""
    if not settings:
        return {}, "", None
    kind = settings.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise ModelError(f"{path}: is of a {kind}, which is not supported; a SentenceTransformer is")
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    texts = isinstance(prompts, dict) and all(isinstance(text, str | None) for text in prompts.values())
    if not texts or not isinstance(default, str | None):
        raise ModelError(f"{path}: prompts must be texts by name, and default_prompt_name one of the names")
    prompts = {"query": "", "document": "", **prompts}  # every model has these two
    if default is not None and default not in prompts:
        raise ModelError(f"{path}: default_prompt_name '{default}' is none of its prompts ({', '.join(prompts)})")
    dimension = settings.get("truncate_dim")
    if dimension is not None and (not isinstance(dimension, int) or isinstance(dimension, bool) or dimension < 1):
        raise ModelError(f"{path}: truncate_dim is {dimension!r}; give a number of values")
    known = {name: text or "" for name, text in prompts.items()}
    return known, known[default] if default else "", dimension


def _flag(path: Path, settings: Mapping[str, Any], key: str, default: bool) -> bool:
    value = settings.get(key, default)
    if not isinstance(value, bool):
        raise ModelError(f"{path}: {key} is {value!r}; it must be true or false")
    return value


def _lower(tokenizer: PreTrainedTokenizerBase) -> None:
    """Lower case before everything else, unless the tokenizer does it."""
    from tokenizers import normalizers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{tokenizer.name_or_path}: do_lower_case of {TRANSFORMER[0]} needs a fast tokenizer")
    if not _lowers(backend.normalizer):
        rest = () if backend.normalizer is None else (backend.normalizer,)
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])


def _lowers(normalizer: Any) -> bool:
    from tokenizers import normalizers

    if isinstance(normalizer, normalizers.Sequence):
        parts: Any = normalizer  # iterable, which its stub does not say
        return any(_lowers(part) for part in parts)
    return isinstance(normalizer, normalizers.Lowercase) or bool(getattr(normalizer, "lowercase", False))


def _prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Tokens that a text with `prompt` begins with, special ones in front of it included."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)
