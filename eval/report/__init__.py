"""The report of a study: figures, tables and one self-contained page.

    from curricula.eval.report.page import write_report

- `page` puts the report together. `web` holds the page's scripts and style, the data they use, and the server of `--serve`.
- `figures` draws and captions the figures. `points` says what they show of each arm, and `drawing` draws it; `training` reads
  what the training runs recorded, and `panels` draws it.
- `page_tables` makes the tables on the page, and `tables` writes tables as files beside it.
- `overviews` writes the pages on several reports: those of a sweep's points, or of several studies.
- `wording` turns names and numbers into text. `console` makes the tables that `curricula eval` prints.

Nothing is imported here, because `page` loads matplotlib and scipy.
"""
