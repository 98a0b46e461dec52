"""Universal information extraction (UIE): annotations to prompts, and schemas to spans in any text.

A UIE model answers a prompt ("城市", "张三的职位", "情感倾向[正向,负向]") with spans of a content. `annotations` and
`examples` make such prompts out of what doccano and Label Studio export; `schema` and `extract` ask a model, or any
engine of it, for everything a schema tree names. The model is `qdq.loading.uie`, its metric `qdq.tasks.spans`.
"""
