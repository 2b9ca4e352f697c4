"""`python src/eval_mergeability.py ...` is `python eval_mergeability.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_mergeability.py")
