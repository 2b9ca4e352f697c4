"""`python src/eval_disentanglement.py ...` is `python eval_disentanglement.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_disentanglement.py")
