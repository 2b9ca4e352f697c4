"""`python src/make_report.py ...` is `python make_report.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("make_report.py")
