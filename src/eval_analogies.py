"""`python src/eval_analogies.py ...` is `python eval_analogies.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_analogies.py")
