"""Invoke verbs (`./inv --list`); each a line or two over `testbed.cli`. Noun first."""

from invoke import Collection, task

from testbed import cli

JSON = "print JSON for programs"
NAME = "the lab's name; not needed while only one is up"
PLANE = "plane name, or several with commas; options follow it: ambient:waypoint_node=node-a"
DRY = "only say what would be done"
RUNTIME = "netns, docker or auto (netns)"
LINK = "netem, wire or auto (netem where the kernel has it)"


@task(help={"only": "pytest -k expression", "fast": "only what needs neither root, Docker, Envoy nor qemu"})
def test(c, only="", fast=False):
    """Every test this machine can run; what it cannot run is counted and named."""
    cli.exit_with(cli.test, only=only, fast=fast)


@task(
    help={
        "rounds": "rounds of all planes (6)",
        "plane": PLANE,
        "runtime": RUNTIME,
        "link": LINK,
        "seed": "seed of order and schedules",
        "dry-run": "print the plan only",
    }
)
def quickstart(c, rounds=None, plane="", runtime="auto", link="auto", seed=None, dry_run=False):
    """The main job: planes in turn on two zones, load, proof from packets, one table, a report. Some minutes."""
    cli.exit_with(
        cli.quickstart,
        rounds=_int(rounds),
        plane=plane,
        runtime=runtime,
        link=link,
        seed=_int(seed),
        dry_run=dry_run,
    )


@task(help={"json": JSON})
def doctor(c, json=False):
    """What this machine can do; each lack with its mend."""
    cli.exit_with(cli.doctor, as_json_text=json)


@task(help={"write": "write topologies/schema.json instead of printing", "dry-run": DRY})
def schema(c, write=False, dry_run=False):
    """JSON Schema of topology files."""
    cli.exit_with(cli.schema, write=write, dry_run=dry_run)


@task(
    help={
        "topology": "name of a shipped topology, or a file",
        "plane": "plane to put on it; options follow its name: ambient:waypoint_node=node-a",
        "runtime": RUNTIME,
        "link": LINK,
        "name": "name of the lab (the topology's)",
        "keylog": "proxies log their TLS secrets, so that captures can be read: for labs only",
        "dry-run": DRY,
        "json": JSON,
    }
)
def lab_up(c, topology, plane="none", runtime="auto", link="auto", name="", keylog=False, dry_run=False, json=False):
    """Bring up a lab that stays; prints measured delay beside asked."""
    cli.exit_with(
        cli.lab_up,
        topology,
        plane=plane,
        runtime=runtime,
        link=link,
        name=name,
        keylog=keylog,
        dry_run=dry_run,
        as_json_text=json,
    )


@task(help={"name": NAME, "dry-run": DRY})
def lab_down(c, name="", dry_run=False):
    """Take a lab down: all of it and nothing else; its captures are ended first."""
    cli.exit_with(cli.lab_down, name, dry_run=dry_run)


@task(help={"json": JSON})
def lab_list(c, json=False):
    """Labs that are up."""
    cli.exit_with(cli.lab_list, as_json_text=json)


@task(help={"name": NAME, "json": JSON})
def lab_inspect(c, name="", json=False):
    """Nodes, workloads, services, proxies and links of a lab."""
    cli.exit_with(cli.lab_inspect, name, as_json_text=json)


@task(help={"workload": "workload (or node) to run in", "name": NAME})
def lab_exec(c, workload, name=""):
    """Run a command in a workload's namespace: lab.exec client -- ping -c1 10.0.2.2. Its exit code is ours."""
    cli.exit_with(cli.lab_exec, workload, cli.words_behind_dashes(), name=name)


@task(help={"workload": "workload (or node) to enter", "name": NAME})
def lab_shell(c, workload, name=""):
    """A shell in a workload's namespace."""
    cli.exit_with(cli.lab_exec, workload, [cli.shell()], name=name)


@task(
    help={
        "topology": "what the lab was brought up from",
        "client": "workload that sends",
        "service": "service that is called, or service:port",
        "name": "name of the lab (the topology's)",
        "json": JSON,
    }
)
def lab_prove(c, topology, client, service, name="", json=False):
    """Canary requests under capture, judged by packets: whether a live lab's plane does what it claims."""
    cli.exit_with(cli.lab_prove, topology, client, service, name=name, as_json_text=json)


@task(help={"topology": "name of a shipped topology, or a file", "json": JSON})
def lab_graph(c, topology, json=False):
    """The topology as text: zones, nodes, workloads, links."""
    cli.exit_with(cli.lab_graph, topology, as_json_text=json)


@task(help={"dry-run": "only say what would go", "all": "also labs that are up and healthy", "json": JSON})
def lab_gc(c, dry_run=False, all=False, json=False):
    """Remove what killed runs left behind: ours only."""
    cli.exit_with(cli.lab_gc, dry_run=dry_run, everything=all, as_json_text=json)


@task(
    help={
        "base": "official, debian, packed, or an image of your own with this Python; auto takes the first to be had",
        "fresh": "build anew, from nothing but the base",
        "dry-run": DRY,
        "json": JSON,
    }
)
def image_build(c, base="auto", fresh=False, dry_run=False, json=False):
    """The image that containers of the docker runtime start from; says which base was used."""
    cli.exit_with(cli.image_build, base=base, fresh=fresh, dry_run=dry_run, as_json_text=json)


@task(help={"name": NAME, "json": JSON})
def link_show(c, name="", json=False):
    """Links: asked and measured."""
    cli.exit_with(cli.link_show, name, as_json_text=json)


@task(
    help={
        "a": "sending node",
        "b": "receiving node",
        "name": NAME,
        "delay-ms": "one-way delay",
        "jitter-ms": "standard deviation",
        "loss": "probability 0..1",
        "rate-mbit": "rate, 0 = unlimited",
        "dry-run": DRY,
        "json": JSON,
    }
)
def link_set(c, a, b, name="", delay_ms=None, jitter_ms=None, loss=None, rate_mbit=None, dry_run=False, json=False):
    """Change the direction a→b of a live link; what is not named stays."""
    values = {"delay_ms": delay_ms, "jitter_ms": jitter_ms, "loss": loss, "rate_mbit": rate_mbit}
    numbers = {key: _float(key, value) for key, value in values.items()}
    cli.exit_with(cli.link_set, a, b, name, dry_run=dry_run, as_json_text=json, **numbers)


@task(
    help={
        "lab": "name of a lab that is up",
        "where": "workloads, links (node-a--node-b: both ends) and nodes, several words; all workloads and links",
        "out": "folder for the file (results/captures/<lab>)",
        "snaplen": "bytes kept of each packet, 0 = all",
        "limit-mib": "ends by itself at this size (512)",
        "dry-run": DRY,
        "json": JSON,
    },
)
def capture_start(c, lab, where="", out="", snaplen=None, limit_mib=None, dry_run=False, json=False):
    """Packets of a live lab into one pcapng, until capture.stop or lab.down; with keys if the proxies log them."""
    cli.exit_with(
        cli.capture_start,
        lab,
        where,
        out=out,
        snaplen=_int(snaplen) or 0,
        limit_mib=_int(limit_mib) or 512,
        dry_run=dry_run,
        as_json_text=json,
    )


@task(help={"lab": NAME, "dry-run": DRY, "json": JSON})
def capture_stop(c, lab="", dry_run=False, json=False):
    """End the captures of a lab; prints their files, packets and losses."""
    cli.exit_with(cli.capture_stop, lab, dry_run=dry_run, as_json_text=json)


@task(help={"pcap": "pcap or pcapng file", "keylog": "TLS key log, where the file has no secrets inside", "json": JSON})
def capture_verify(c, pcap, keylog="", json=False):
    """What packets prove: TLS, identities, HBONE, cleartext."""
    cli.exit_with(cli.capture_verify, pcap, keylog, as_json_text=json)


@task(help={"json": JSON})
def experiment_list(c, json=False):
    """Experiments and their questions."""
    cli.exit_with(cli.experiment_list, as_json_text=json)


@task(
    help={
        "name": "experiment",
        "plane": PLANE,
        "trials": "rounds",
        "runtime": RUNTIME,
        "link": LINK,
        "resume": "folder of a run to go on with",
        "seed": "seed of order and schedules",
        "until-width": "end early once p50 of every plane is known to within so many percent; --trials is the most",
        "budget-min": "begin no round that would end later than so many minutes after the first trial",
        "share": "percent of the slowest plane's capacity, searched for first, at which every plane is loaded",
        "dry-run": "print the plan only",
    }
)
def experiment_run(
    c,
    name,
    plane="",
    trials=None,
    runtime="auto",
    link="auto",
    resume="",
    seed=None,
    until_width=None,
    budget_min=None,
    share=None,
    dry_run=False,
):
    """Run an experiment, print its table and the report's path."""
    cli.exit_with(
        cli.experiment_run,
        name,
        plane=plane,
        trials=_int(trials),
        runtime=runtime,
        link=link,
        resume=resume,
        seed=_int(seed),
        until_width=_float("until_width", until_width),
        budget_min=_float("budget_min", budget_min),
        share=_float("share", share),
        dry_run=dry_run,
    )


@task(help={"run": "folder of a run", "json": JSON})
def experiment_show(c, run, json=False):
    """A run's table again; its exit code says whether it is valid."""
    cli.exit_with(cli.experiment_show, run, as_json_text=json)


@task(help={"json": JSON})
def claims(c, json=False):
    """The claims this testbed exists to test, each with the verdict of the newest run that speaks of it."""
    cli.exit_with(cli.claims, as_json_text=json)


@task(help={"run": "folder of a run", "dry-run": DRY})
def report_build(c, run, dry_run=False):
    """Build report.html of a run again."""
    cli.exit_with(cli.report_build, run, dry_run=dry_run)


@task(help={"run": "folder of a run", "dry-run": DRY})
def report_keep(c, run, dry_run=False):
    """Keep a run beside the code, small: results/reference/<experiment>, in place of the one before."""
    cli.exit_with(cli.report_keep, run, dry_run=dry_run)


@task(help={"write": "write docs/reference.md instead of printing", "dry-run": DRY})
def report_reference(c, write=False, dry_run=False):
    """The page of the reference runs: what came out, claims, published shapes, how to repeat them."""
    cli.exit_with(cli.report_reference, write=write, dry_run=dry_run)


@task(help={"json": JSON})
def report_shapes(c, json=False):
    """Which shapes of published measurements the reference runs have, and which not."""
    cli.exit_with(cli.report_shapes, as_json_text=json)


@task(help={"before": "folder of a run", "after": "folder of a run", "json": JSON})
def report_compare(c, before, after, json=False):
    """Differences between two runs."""
    cli.exit_with(cli.report_compare, before, after, as_json_text=json)


@task
def bench_bringup(c):
    """Bring-up of 10, 100 and 1,000 hosts, Mininet beside ours. Options of its own behind --."""
    cli.exit_with(cli.bench, "bringup", c.remainder.split())


@task
def bench_containers(c):
    """Bring-up on containers, with netns and bare containers beside it. Options of its own behind --."""
    cli.exit_with(cli.bench, "containers", c.remainder.split())


@task
def bench_links(c):
    """Link accuracy asked and measured, throughput, many links. Options of its own behind --."""
    cli.exit_with(cli.bench, "links", c.remainder.split())


@task
def bench_proxy(c):
    """CPU per request of our proxies, real Envoy beside them. Options of its own behind --."""
    cli.exit_with(cli.bench, "proxy", c.remainder.split())


@task
def bench_floods(c):
    """Floods, slow peers and 10,000 idle ones at our proxies, Envoy beside them. Options of its own behind --."""
    cli.exit_with(cli.bench, "floods", c.remainder.split())


@task(help={"target": "one of the targets (all)", "seconds": "for each target (20)", "json": JSON})
def fuzz_run(c, target="", seconds=None, json=False):
    """Parsers given bytes that reach new code, by atheris where it is installed; says how to get it where not."""
    cli.exit_with(cli.fuzz, target, seconds=_int(seconds), as_json_text=json)


@task
def bench_power(c):
    """What the statistics find: planted differences in made-up latencies. Options of its own behind --."""
    cli.exit_with(cli.bench, "power", c.remainder.split())


def _int(text):
    from testbed.errors import UsageError

    if text is None:
        return None
    if not str(text).isdigit():
        cli.exit_with(_raise, UsageError(f"{text!r} is not a whole number"))
    return int(text)


def _float(name, text):
    from testbed.errors import UsageError

    try:
        return None if text is None else float(text)
    except ValueError:
        cli.exit_with(_raise, UsageError(f"--{name.replace('_', '-')} {text!r} is not a number"))


def _raise(error):
    raise error


NOUNS = ("image", "lab", "link", "capture", "experiment", "report", "bench", "fuzz")

namespace = Collection()
for _name, _task in [(n, t) for n, t in sorted(globals().items()) if hasattr(t, "body")]:
    _noun, _, _verb = _name.partition("_")
    if _noun in NOUNS and _verb:
        if _noun not in namespace.collections:
            namespace.add_collection(Collection(_noun))
        namespace.collections[_noun].add_task(_task, name=_verb.replace("_", "-"))
    else:
        namespace.add_task(_task, name=_name)
