"""`python src/make_tables.py ...` is `python make_tables.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("make_tables.py")
