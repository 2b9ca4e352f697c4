"""`python src/finetune.py ...` is `python finetune.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("finetune.py")
