"""The report of a study: figures, tables and one self-contained page.

    from curricula.eval.report.page import write_report

`page` puts the report together, and `web` makes it a page. `points` says what the figures show of each arm and draws it,
`training` what the training runs have recorded, which `panels` draws; `figures` captions both. `page_tables` are the page's
tables, and `tables` writes those beside it; `overviews` bring together several reports. `wording` turns names and numbers into
text; `console` has the tables for terminals. Nothing is imported here, because `page` loads matplotlib and scipy.
"""
