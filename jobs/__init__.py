"""When and where a study runs: the study file, its plan, the launchers, monitoring and the command line.

    study = load_study(Path("jobs/studies/demo.yaml"))
    for job, element in plan_study(study).elements():
        print(job.name, element.label, element.gpu_hours)

Both functions can be imported from `curricula`.
"""
