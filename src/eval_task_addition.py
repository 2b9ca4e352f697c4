"""`python src/eval_task_addition.py ...` is `python eval_task_addition.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_task_addition.py")
