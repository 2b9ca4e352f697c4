"""`python src/eval_connectivity.py ...` is `python eval_connectivity.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_connectivity.py")
