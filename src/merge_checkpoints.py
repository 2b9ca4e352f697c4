"""`python src/merge_checkpoints.py ...` is `python merge_checkpoints.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("merge_checkpoints.py")
