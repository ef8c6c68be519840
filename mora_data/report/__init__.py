"""The report of a run: report.json (`document`) and, drawn from it, report.html (`page`).

write_report(run_dir, report_of(run_dir))
"""
