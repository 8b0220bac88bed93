"""What a printed table says, cell by cell."""


def header(shown):
    """The headings of a printed table."""
    line = next(line for line in str(shown).splitlines() if line.startswith("┃"))
    return [cell.strip() for cell in line.strip("┃").split("┃")]


def rows(shown):
    """The cells of each row of a printed table, top to bottom."""
    lines = [line for line in str(shown).splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
