import pytest, torch, warnings, time
import numpy as np, onnx, onnxruntime as ort
from collections import Counter
from qdq.model import load_model
from qdq.inject import inject, quantizers
from qdq.inject.quantizer import folded
from qdq.inject.spec import PLACEMENTS, named_spec
from qdq.calibrate.calibrate import calibrate, CalibrationSettings
from export.to_onnx import export_onnx
FAM="bert roberta xlm-roberta camembert electra ernie distilbert albert mpnet".split()
@pytest.mark.parametrize("m", FAM)
def test_x(m, tiny_checkpoint, sentences, tmp_path):
    l = load_model(str(tiny_checkpoint(m,"text-classification")))
    e = l.tokenizer(list(sentences), padding=True, return_tensors="pt")
    x={k:e[k] for k in l.inputs}
    mod=l.module()
    p = inject(l.model, named_spec("qdqbert"))
    batches=[{k:v[i:i+6] for k,v in x.items()} for i in range(0,36,6)]
    calibrate(mod,batches,named_spec("qdqbert"),CalibrationSettings("max"))
    t=time.time()
    with folded(l.model):
        r=export_onnx(mod,{k:v[:2,:7].contiguous() for k,v in x.items()},l.outputs,tmp_path/"m.onnx")
    print(m, r, round(time.time()-t,1))
    g=onnx.load(tmp_path/"m.onnx"); onnx.checker.check_model(g)
    print(sorted(Counter(n.op_type for n in g.graph.node).items()))
    names=[n.name for n in g.graph.node]; assert len(set(names))==len(names)
    for i in g.graph.initializer:
        a=onnx.numpy_helper.to_array(i)
        if a.dtype.kind=="f" and (np.abs(a)>1e4).any(): print("BIG", i.name, a.min(), a.max())
    print([ (i.name, i.dims) for i in g.graph.initializer if not i.name.endswith((".scale",".zero_point",".codes",".bias",".weight"))])
    o=ort.SessionOptions(); o.graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    s=ort.InferenceSession(tmp_path/"m.onnx",o)
    for n in (4,11):
        f={k:v[:n].numpy() for k,v in x.items()}
        got=s.run(None,f)[0]
        with torch.no_grad(): want=mod(**{k:v[:n] for k,v in x.items()})[0].numpy()
        print("  diff", np.abs(got-want).max(), want.std())
