"""`python src/eval_course.py ...` is `python eval_course.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_course.py")
