# One job per notebook and scale. `make reproduce` is the door: it asks for the records that are out of date.
#
# To see what would run, or to scale out, everything after `--` goes to Snakemake:
#   python -m experiments reproduce --scale paper -- --executor slurm --jobs 40
import sys

sys.path.insert(0, workflow.basedir)
from experiments import code_hash, records, run

# Everything that is made, and Snakemake's own notes, is below _build.
workdir: records.ROOT / "_build"


DEVICE = f"-p device {config['device']}" if "device" in config else ""


wildcard_constraints:
    scale="|".join(records.SCALES),
    slug="[a-z0-9_]+",


rule all:
    input:
        [f"results/quick/{slug}.json" for slug in run.slugs()],


rule experiment:
    output:
        # Not deleted before the run: the record that there is stays until a new one takes its place.
        update("results/{scale}/{slug}.json"),
    params:
        # What makes a result out of date: the notebook and the code that it uses. Its parameters, and the digests
        # of the data sets, stand in that code.
        code=lambda wildcards: code_hash.of_notebook(
            records.ROOT / "notebooks" / f"{wildcards.slug}.py", records.ROOT
        ),
    threads: lambda wildcards: run.defaults(wildcards.slug).get("threads", 1)
    shell:
        "PYTHONPATH={workflow.basedir:q} {sys.executable:q} -m experiments.warm run {wildcards.slug}"
        " --scale {wildcards.scale} {DEVICE}"
