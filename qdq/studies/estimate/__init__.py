"""The estimator fitted on published latencies, judged by others, and asked what each lowering is worth.

Read in this order: `forms` (encoders as ONNX), `networks` (their kernels, compiled or predicted), `fit` (coefficients
and errors), `lowering` (what each change of the lowering is worth). ``python -m qdq.studies.estimate`` runs them.
"""
