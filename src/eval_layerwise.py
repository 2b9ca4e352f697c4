"""`python src/eval_layerwise.py ...` is `python eval_layerwise.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_layerwise.py")
