# One job per notebook and scale. `make reproduce` is the door: it asks for the records that are out of date.
#
# To see what would run, or to scale out, everything after `--` goes to Snakemake:
#   python -m experiments reproduce --scale paper -- --executor slurm --jobs 40
import sys

sys.path.insert(0, workflow.basedir)
from experiments import records, run

# Everything that is made, and Snakemake's own notes, is below _build.
workdir: records.ROOT / "_build"


DEVICE = f"-p device {config['device']}" if "device" in config else ""


wildcard_constraints:
    scale="|".join(records.SCALES),
    slug="[a-z0-9_]+",


rule all:
    input:
        [f"work/done/quick/{slug}" for slug in run.slugs()],


rule experiment:
    output:
        # A mark that the run came to its end, not the record: what is its output, Snakemake deletes before a job and
        # after one that failed, and on a cluster three layers of it do. A record is written by `run` alone.
        "work/done/{scale}/{slug}",
    params:
        # What makes a result out of date: the notebook and the code that it uses. Its parameters, and the digests
        # of the data sets, stand in that code.
        code=lambda wildcards: records.code_today(wildcards.slug, wildcards.scale),
    resources:
        # On a cluster: a GPU where the device is one.
        gpu=int(str(config.get("device", "")).startswith("cuda")),
        # To the plugin for Slurm: start the job as it is. Its own way is an `srun` that does not hear of SLURM_CONF.
        mpi="",
    threads: lambda wildcards: run.defaults(wildcards.slug).get("threads", 1)
    shell:
        "PYTHONPATH={workflow.basedir:q} {sys.executable:q} -m experiments.warm run {wildcards.slug}"
        " --scale {wildcards.scale} {DEVICE} && touch {output:q}"
