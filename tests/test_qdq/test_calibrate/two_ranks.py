"""What test_two_ranks.py runs under torchrun: calibration, PTQ, training by DDP and by FSDP on two CPU processes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate
from qdq.compress.arguments import CompressionArguments
from qdq.compress.trainer import CompressionTrainer
from qdq.inject import inject
from qdq.inject.spec import named_spec
from qdq.loading.model import load_model

ALGORITHMS = ("max", "percentile", "mse", "avg")


def batches(count: int = 5) -> list[dict[str, torch.Tensor]]:
    """Random ids of different lengths, the same on every process; the last third of every second row is padding."""
    random = torch.Generator().manual_seed(3)
    made = []
    for index in range(count):
        ids = torch.randint(5, 100, (4, 6 + index), generator=random)
        mask = torch.ones_like(ids)
        mask[1::2, -2:] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)})
    return made


def calibrated(folder: str, algorithm: str) -> dict[str, Any]:
    """Every amax as a hexadecimal float, and what was counted."""
    loaded = load_model(folder)
    spec = named_spec("qdqbert")
    inject(loaded.model, spec)
    table = calibrate(loaded.module(), batches(), spec, algorithm_named(algorithm))
    amax = {name: value.hex() for name, value in table.activations.items()}
    return {"amax": amax, "samples": table.samples, "tokens": table.tokens}


def samples(count: int = 16) -> list[dict[str, torch.Tensor]]:
    """Labelled rows of one length."""
    random = torch.Generator().manual_seed(4)
    rows = torch.randint(5, 100, (count, 8), generator=random)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[1] % 2} for row in rows]


def compressed(folder: str, out: str) -> dict[str, Any]:
    """PTQ through the trainer: the metric and every amax of the best candidate."""
    loaded = load_model(folder)
    args = CompressionArguments(
        output_dir=out,
        strategy="ptq",
        algo_list=["abs_max"],
        batch_num_list=[4],
        batch_size_list=[4],
        report_to="none",
        disable_tqdm=True,
        device="cpu",
    )
    trainer = CompressionTrainer(loaded.model, args, eval_dataset=samples(), tokenizer=loaded.tokenizer)
    best = trainer.compress().best
    assert best.table is not None
    return {"metric": best.metric, "amax": {name: value.hex() for name, value in best.table.activations.items()}}


def stepped(folder: str, sharded: bool) -> dict[str, float]:
    """One SGD step on 16 samples, in one process or sharded over all of them; a sum per parameter."""
    model = load_model(folder).model
    rows = samples()
    if sharded:
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        for layer in model.base_model.encoder.layer:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        rows = rows[distributed.get_rank() :: distributed.get_world_size()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    model(**batch).loss.backward()
    optimizer.step()
    whole = {
        name: parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        for name, parameter in model.named_parameters()
    }
    return {name: float(tensor.detach().double().sum()) for name, tensor in whole.items()}


def finetuned(folder: str, out: str) -> None:
    """examples/finetune_glue.py as a user starts it under torchrun: two steps on MRPC's layout, DDP through Trainer."""
    rows = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    rows += [f"{i % 2}\t{i}\t{i}\tthe cat sat number {i}\tthe dog ran {i}" for i in range(16)]
    data = Path(out) / "mrpc"
    if distributed.get_rank() == 0:
        data.mkdir()
        for name in ("train", "dev"):
            (data / f"{name}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    distributed.barrier()
    flags = ["--data_dir", str(data), "--output_dir", f"{out}/finetuned", "--model_name_or_path", folder]
    sys.argv = ["finetune_glue.py", *flags, "--do_train", "--do_eval", "--max_steps", "2"]
    examples = Path(__file__).resolve().parents[3] / "examples"
    sys.path.insert(0, str(examples))  # as for a script that is started
    try:
        runpy.run_path(str(examples / "finetune_glue.py"), run_name="__main__")
    except SystemExit as ended:  # as every script ends
        assert not ended.code


def main(folder: str, out: str) -> None:
    """Everything on two processes; the first writes what it found."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found: dict[str, Any] = {name: calibrated(folder, name) for name in ALGORITHMS}
    found["fsdp"] = stepped(folder, sharded=True)
    found["ptq"] = compressed(folder, f"{out}/ptq")
    finetuned(folder, out)
    if distributed.get_rank() == 0:
        (Path(out) / "found.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
