"""The report of a study: nine figures, tables and one self-contained page.

    from curricula.eval.report.page import write_report

`page` puts the report together, `figures` draws and captions the figures, `wording` turns names and numbers into text, and
`report.html.j2` is the page. Nothing is imported here, because `page` loads matplotlib and scipy.
"""
