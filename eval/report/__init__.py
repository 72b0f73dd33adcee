"""The report of a study: figures, tables and one self-contained page.

    from curricula.eval.report.page import write_report

Nothing is imported here, because `page` loads matplotlib and scipy.
"""
