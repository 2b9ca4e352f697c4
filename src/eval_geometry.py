"""`python src/eval_geometry.py ...` is `python eval_geometry.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_geometry.py")
