"""The Python interface behind `import qdq`: compile a model, load what was compiled, check a graph."""
