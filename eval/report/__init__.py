"""The report of a study: figures, tables and one self-contained page.

    from curricula.eval.report.page import write_report

docs/architecture.md says what each module does. Nothing is imported here, because `page` loads matplotlib and scipy.
"""
