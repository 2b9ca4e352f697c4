"""`python src/eval_merged_models.py ...` is `python eval_merged_models.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_merged_models.py")
