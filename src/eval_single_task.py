"""`python src/eval_single_task.py ...` is `python eval_single_task.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_single_task.py")
