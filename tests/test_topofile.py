"""Topology files: what is read, and that every mistake is told with its place and mend."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from testbed import topofile
from testbed.errors import TopologyError, UsageError
from testbed.model.policy import AuthorizationPolicy, PeerAuthentication
from testbed.model.topology import App, GilbertElliott, Impairment
from testbed.yamlpos import Reader

SMALL = """\
name: small
nodes: {a: {}, b: {}}
links: [{between: [a, b]}]
"""


def problems(text: str, filename: str = "t.yml") -> list[str]:
    with pytest.raises(TopologyError) as caught:
        topofile.parse(text, filename)
    return caught.value.problems


def small(**extra: object) -> str:
    return SMALL + yaml.safe_dump(extra, sort_keys=False)


# -- what is read


@pytest.mark.parametrize("name", sorted(topofile.shipped()))
def test_shipped_topologies_are_valid_and_named_as_their_file(name: str) -> None:
    """Each loads by its bare name, and has somebody to call from."""
    topology = topofile.load(name)

    assert topology.name == name
    assert any(w.app.kind == "idle" for w in topology.workloads)


def test_all_promised_topologies_are_shipped() -> None:
    """No more and no fewer than these; a policy file is no topology."""
    assert sorted(topofile.shipped()) == [
        "certificates", "chain3", "deny-default", "disruption", "fanout", "hybrid", "neighbours", "pair", "shop",
        "three-zones", "two-zones",
    ]  # fmt: skip


def test_two_zones_is_two_milliseconds_apart_with_its_policies() -> None:
    """The experiment's default lab."""
    topology = topofile.load("two-zones")

    assert [n.zone for n in topology.nodes] == ["east", "west"]
    assert topology.link("node-a", "node-b").rtt_ms == 2.0
    assert topology.workload("intruder").node == topology.workload("client").node
    assert [(type(p), p.name) for p in topology.policies] == [
        (PeerAuthentication, "strict"),
        *((AuthorizationPolicy, name) for name in ("only-client", "no-secret", "no-secret-at-waypoint", "read-only")),
    ]
    assert topology.service("server").waypoint is not None


def test_shop_is_ten_services_in_two_zones() -> None:
    """Zones are joined node by node."""
    topology = topofile.load("shop")

    assert (len(topology.services), len(topology.nodes), {n.zone for n in topology.nodes}) == (10, 4, {"east", "west"})
    assert topology.link("east-2", "west-1").rtt_ms == 2.0
    assert [w.node for w in topology.workloads if w.group == "frontend"] == ["east-1", "west-1"]


def test_addresses_are_planned_in_the_order_of_the_file() -> None:
    """Nodes and their workloads count from the top, services and links each in their own network."""
    topology = topofile.load("pair")

    assert [n.address for n in topology.nodes] == ["10.0.1.1", "10.0.2.1"]
    assert [w.address for w in topology.workloads] == ["10.0.1.2", "10.0.2.2", "10.0.2.3"]
    assert [s.address for s in topology.services] == ["10.96.0.10", "10.96.0.11"]
    assert (topology.links[0].a_address, topology.links[0].b_address) == ("172.16.0.0", "172.16.0.1")


def test_replicas_are_numbered_and_one_keeps_its_name() -> None:
    """They go round the nodes given; a service stands for all of them."""
    topology = topofile.parse(
        small(
            workloads={
                "one": {"node": "a"},
                "many": {"nodes": ["a", "b"], "replicas": 3, "app": {"kind": "tcp-echo", "ports": [1]}},
            },
            services={"many": {"ports": [{"port": 1}], "workloads": ["many"]}},
        ),
        "t.yml",
    )

    assert [(w.name, w.node) for w in topology.workloads] == [
        ("one", "a"),
        ("many-0", "a"),
        ("many-1", "b"),
        ("many-2", "a"),
    ]
    assert topology.service("many").endpoints == ("many-0", "many-1", "many-2")


def test_directions_go_over_what_holds_for_both() -> None:
    """`forward` is from the first to the second of `between`; one kind of loss replaces the other."""
    topology = topofile.parse(
        """\
name: t
nodes: {a: {}, b: {}}
links:
  - between: [b, a]
    delayMs: 1
    loss: 0.5
    forward: {delayMs: 3, jitterMs: 1}
    backward: {gilbertElliott: {p: 0.1, r: 0.2}, rateMbit: 10, queueMs: 5}
""",
        "t.yml",
    )
    link = topology.links[0]

    assert (link.a, link.b) == ("b", "a")
    assert link.a_to_b == Impairment(delay_ms=3, jitter_ms=1, loss=0.5)
    assert link.b_to_a == Impairment(delay_ms=1, gilbert_elliott=GilbertElliott(p=0.1, r=0.2), rate_mbit=10, queue_ms=5)


def test_zone_links_leave_declared_links_alone() -> None:
    """A link between two nodes is what was said of these nodes; the zone's round trip is halved for the others."""
    topology = topofile.parse(
        """\
name: t
zones: [e, w]
nodes: {a: {zone: e}, b: {zone: w}, c: {zone: w}}
links: [{between: [a, b], delayMs: 7}]
zoneLinks: [{between: [e, w], rttMs: 3}]
""",
        "t.yml",
    )

    assert {link.name: link.a_to_b.delay_ms for link in topology.links} == {"a--b": 7, "a--c": 1.5}


def test_an_image_of_the_users_own_is_a_workload_like_any_other() -> None:
    """Its command, variables, writable folders and user id are read; without them the image's own command runs."""
    app = {"kind": "image", "image": "redis:7", "ports": [6379]}
    more = {"command": ["redis-server", "-"], "environment": {"B": "2", "A": "1"}, "writable": ["/data"], "userId": 0}
    topology = topofile.parse(
        small(workloads={"plain": {"node": "a", "app": app}, "full": {"node": "a", "app": {**app, **more}}}), "t.yml"
    )

    plain, full = topology.workload("plain").app, topology.workload("full").app
    assert plain == App(kind="image", ports=(6379,), image="redis:7")
    assert (full.command, full.environment) == (("redis-server", "-"), (("A", "1"), ("B", "2")))
    assert (full.writable, full.user_id) == (("/data",), 0)


# -- what is refused

MISTAKES = [
    ("links: [{between: [a, b], delayMs: 120000}]", "4:36: one-way delay 120s is above the 10s", "delayMs: 120?"),
    ("links: [{between: [a, b], delay: 1}]", "4:27: unknown key in link ('delay')", "did you mean 'delayMs'?"),
    ("links: [{between: [a, b], delayMs: 1e3}]", "4:36: one-way delay in ms must be a number", "write a number"),
    ("links: [{between: [a, b], delayMs: 5ms}]", "4:36: one-way delay in ms must be a number", "write 5 without unit"),
    ("links: [{between: [a, b], loss: 5}]", "4:33: loss is above 1 (5)", "did you mean 0.05?"),
    ("links: [{between: [a, b], delayMs: -1}]", "out of range (-1)", "from 0 to 10000"),
    ("links: [{between: [a, b], rateMbit: 1.0e-6}]", "out of range (1e-06)", "0, or from 0.02 to 400000"),
    ("links: [{between: [a, b], delayMs: yes}]", "must be a number, not true/false (yes)", "write a number"),
    ("links: [{between: [a, bb]}]", "4:23: no node of that name ('bb')", "did you mean 'b'?"),
    ("links: [{between: [a, a]}]", "a link needs two nodes ('a' twice)", "name another node"),
    ("links: [{between: [a, b]}, {between: [b, a]}]", "4:39: link given twice (b, a)", "forward, backward"),
    ("links: [{between: [a]}]", "between has the wrong length (1)", "give 2"),
    ("links: []", "2:16: node is not reachable from a over links ('b')", "add a link"),
    ("links: [{between: [a, b], loss: 0.1, gilbertElliott: {p: 1, r: 1}}]", "exclude each other", "take one of them"),
    ("links: {}", "4:8: links must be a list, not a mapping", "write it as a list"),
    ("workloads: {w: {node: c}}", "4:23: no node of that name ('c')", "known: a, b"),
    ("workloads: {w: {node: a, nodes: [b]}}", "4:16: workload must have one of two keys", "node, nodes"),
    ("workloads: {w: {}}", "workload must have one of two keys (neither)", "node, nodes"),
    ("workloads: {W_1: {node: a}}", "4:13: bad name in workloads ('W_1')", "did you mean 'w-1'?"),
    ("workloads: {a: {node: a}}", "4:13: the workload's name is taken by a node ('a')", "rename one"),
    ("workloads: {w: {node: a, replicas: 0}}", "replicas is out of range (0)", "from 1 to 10000"),
    ("workloads: {w: {node: a, replicas: 254}}", "node a has more than 253 workloads", "nodes: [...]"),
    ("workloads: {w: {node: a, plane: ambiant}}", "unknown plane of a workload ('ambiant')", "mean 'ambient'?"),
    (
        "workloads: {w: {node: a, app: {kind: http-eco, ports: [1]}}}",
        "unknown kind of app ('http-eco')",
        "'http-echo'?",
    ),
    ("workloads: {w: {node: a, app: {kind: http-echo}}}", "the app listens nowhere (http-echo)", "add ports"),
    ("workloads: {w: {node: a, app: {kind: image, ports: [80]}}}", "the app's image is not said", "add image:"),
    (
        "workloads: {w: {node: a, app: {kind: image, image: x, ports: [80], userId: 1337}}}",
        "the user id belongs to the proxies, whose traffic is not captured (1337)",
        "take another",
    ),
    (
        "workloads: {w: {node: a, app: {kind: image, image: x, ports: [80], serviceTimeMs: 5}}}",
        "an image takes the time it takes (5)",
        "kind: http-echo",
    ),
    (
        "workloads: {w: {node: a, app: {kind: http-echo, ports: [80], command: [sh]}}}",
        "only an app of kind image has command (http-echo)",
        "use kind: image",
    ),
    (
        "workloads: {w: {node: a, app: {kind: image, image: x, ports: [80], writable: [tmp]}}}",
        "bad folder ('tmp')",
        "absolute path",
    ),
    ("workloads: {w: {node: a, app: {kind: tcp-echo, ports: [15001]}}}", "belongs to the proxies (15001)", "another"),
    ("workloads: {w: {node: a, app: {kind: idle, calls: [s]}}}", "4:52: no service of that name ('s')", "known: none"),
    ("services: {s: {ports: [{port: 1}], workloads: [w]}}", "4:48: no workload of that name ('w')", "known: none"),
    ("services: {s: {ports: [{port: 70000}], workloads: [w]}}", "port is out of range (70000)", "from 1 to 65535"),
    ("zones: [e, w]", "2:12: the node's zone is not said ('a')", "add zone: e"),
    ("names: x", "4:1: unknown key in topology ('names')", "did you mean 'name'?"),
    ("name: again", "4:1: key given twice in topology ('name', first on line 1)", "take one out"),
    ("policies: [{file: no.yml}]", "4:19: the policy file cannot be read ('no.yml'", "beside this file"),
    ("policies: [{file: /etc/passwd}]", "4:19: the policy file is not in this file's folder ('/etc/passwd'", "put it"),
    ("policies: [{file: ../../etc/passwd}]", "4:19: the policy file is not in this file's folder", "symbolic link"),
    ("policies: [{file: sub/../../p.yml}]", "4:19: the policy file is not in this file's folder", "folder below"),
    ('policies: [{file: "p\\0.yml"}]', "4:19: the policy file cannot be read", "beside this file"),
    ("policies: [{kind: PeerAuth, metadata: {name: x}}]", "4:19: unknown kind ('PeerAuth')", "'PeerAuthentication'?"),
    ("3: x", "4:1: a key in topology must be text, not a number (3)", 'write "3" in quotes'),
]


@pytest.mark.parametrize(("line", "what", "mend"), MISTAKES, ids=[m[0][:60] for m in MISTAKES])
def test_a_mistake_is_told_with_place_value_and_mend(line: str, what: str, mend: str) -> None:
    """One mistake, told where it stands, with the way out."""
    text = SMALL.replace("links: [{between: [a, b]}]\n", "\n") if line.startswith("links:") else SMALL
    found = [p for p in problems(text + line) if what in p]

    assert len(found) == 1, problems(text + line)
    assert found[0].startswith("t.yml:") and mend in found[0].split("; ", 1)[1]


def test_all_mistakes_of_a_file_come_at_once_in_their_order() -> None:
    """An author mends a file in one round."""
    text = SMALL + "workloads:\n  w: {node: c}\n  v: {nod: a}\nservices:\n  s: {ports: [{port: 0}], workloads: [x]}\n"
    found = problems(text)

    assert [p.split(":")[1] for p in found] == ["5", "6", "6", "8", "8"]


def test_mistakes_of_a_policy_file_are_told_in_its_own_name(tmp_path: Path) -> None:
    """Two files, one list."""
    (tmp_path / "p.yml").write_text("kind: PeerAuthentication\nmetadata: {name: x}\nspec: {mtlss: {}}\n")
    found = problems(small(policies=[{"file": "p.yml"}], x=1), str(tmp_path / "t.yml"))

    assert any(p.startswith(f"{tmp_path}/p.yml:3:8: unknown key") for p in found)
    assert any(p.startswith(f"{tmp_path}/t.yml:") for p in found)


def test_a_policy_file_may_be_below_or_linked(tmp_path: Path) -> None:
    """A link in the folder is its author's own will, wherever it leads; a path that leads out is refused unread."""
    outside = tmp_path / "outside.yml"
    outside.write_text("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\n")
    folder = tmp_path / "lab"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "below.yml").write_text(outside.read_text())
    (folder / "linked.yml").symlink_to(outside)

    for name in ("sub/below.yml", "./linked.yml"):
        made = topofile.parse(small(policies=[{"file": name}]), str(folder / "t.yml"))
        assert [p.name for p in made.policies] == ["x"]
    for name in ("../outside.yml", str(outside)):
        (found,) = problems(small(policies=[{"file": name}]), str(folder / "t.yml"))
        assert "is not in this file's folder" in found and name in found


def test_device_names_that_would_be_cut_to_the_same_are_refused() -> None:
    """A device name holds 15 bytes: `to-` and twelve letters of the neighbour."""
    found = problems(
        "name: t\nnodes: {a: {}, long-name-node-1: {}, long-name-node-2: {}}\n"
        "links: [{between: [a, long-name-node-1]}, {between: [a, long-name-node-2]}]\n"
    )

    assert len(found) == 1 and "'to-long-name-no'" in found[0] and "rename a node" in found[0]


def test_a_file_name_may_hold_colons() -> None:
    """Problems are told in order of their places all the same."""
    found = problems("name: x\nnodes: {a: {}}\nbogus: 1\nnodez: 2\n", "a:b/c:8.yml")

    assert [p.partition(" ")[0] for p in found] == ["a:b/c:8.yml:3:1:", "a:b/c:8.yml:4:1:"]


def test_a_chain_of_calls_may_be_long() -> None:
    """Longer than what Python lets a function call itself."""
    length = 1500
    workloads = [
        f"  w{n}: {{node: n{n % 8}, app: {{kind: http-echo, ports: [80], calls: [w{n + 1}]}}}}" for n in range(length)
    ]
    services = [f"  w{n}: {{workloads: [w{n}], ports: [{{port: 80}}]}}" for n in range(length + 1)]
    text = "\n".join(
        [
            "name: deep",
            f"nodes: {{{', '.join(f'n{n}: {{}}' for n in range(8))}}}",
            "links:",
            *(f"  - {{between: [n{n}, n{n + 1}]}}" for n in range(7)),
            "workloads:",
            *workloads,
            f"  w{length}: {{node: n0, app: {{kind: http-echo, ports: [80]CALLS}}}}",
            "services:",
            *services,
        ]
    )

    assert len(topofile.parse(text.replace("CALLS", ""), "deep.yml").services) == length + 1
    with pytest.raises(TopologyError, match=rf"circle \(w0 -> w1 .* -> w{length} -> w0\)"):
        topofile.parse(text.replace("CALLS", ", calls: [w0]"), "deep.yml")


def test_services_that_call_each_other_in_a_circle_are_refused() -> None:
    """Such a chain would never answer."""
    echo = {"kind": "http-echo", "ports": [1]}
    text = small(
        workloads={
            "v": {"node": "a", "app": {**echo, "calls": ["w"]}},
            "w": {"node": "b", "app": {**echo, "calls": ["v"]}},
        },
        services={n: {"ports": [{"port": 1}], "workloads": [n]} for n in ("v", "w")},
    )

    assert any("circle (v -> w -> v)" in p for p in problems(text))


def test_target_port_where_nothing_listens_is_refused() -> None:
    """The mend says where the workload does listen."""
    text = small(
        workloads={"w": {"node": "a", "app": {"kind": "tcp-echo", "ports": [9000]}}},
        services={"s": {"ports": [{"port": 80}], "workloads": ["w"]}},
    )

    assert any("nothing listens at the target port (80)" in p and "w listens at: 9000" in p for p in problems(text))


@pytest.mark.parametrize("text", ["", "a: [", "- x", "name: x\n---\nname: y\n", "x: \x01", "a: &a [*a]", "a: *b"])
def test_what_is_no_topology_at_all_is_refused_with_a_place(text: str) -> None:
    """Syntax errors, no or several documents, the wrong kind of document."""
    assert all(p.startswith("t.yml:") for p in problems(text))


@given(st.text(max_size=80))
def test_no_text_breaks_the_parser(text: str) -> None:
    """Any text is a topology or a TopologyError."""
    try:
        topofile.parse(text, "t.yml")
    except TopologyError:
        pass


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """A path or a shipped name."""
    with pytest.raises(UsageError, match="did you mean 'two-zones'"):
        topofile.load("two-zone")


# -- the JSON Schema


def test_exported_schema_is_that_of_the_code() -> None:
    """`topologies/schema.json` is what editors use."""
    exported = json.loads((topofile.FOLDER / "schema.json").read_text(encoding="utf-8"))

    assert exported == topofile.json_schema()
    jsonschema.Draft202012Validator.check_schema(exported)


_VALIDATOR = jsonschema.Draft202012Validator(topofile.json_schema())
GOOD = {
    "name": "t",
    "zones": ["e"],
    "nodes": {"a": {"zone": "e"}, "b": {}},
    "workloads": {
        "w": {"node": "a", "replicas": 2, "app": {"kind": "http-echo", "ports": [1]}, "labels": {"x": "y"}},
        "i": {
            "node": "b",
            "app": {
                "kind": "image",
                "image": "redis:7",
                "command": ["redis-server", "--save", ""],
                "environment": {"A": "b"},
                "writable": ["/data"],
                "userId": 999,
                "ports": [6379],
            },
        },
    },
    "services": {"s": {"ports": [{"port": 1, "protocol": "tcp"}], "workloads": ["w"], "waypoint": {"node": "a"}}},
    "links": [{"between": ["a", "b"], "delayMs": 1.5, "forward": {"loss": 0.1, "rateMbit": 0}}],
    "zoneLinks": [{"between": ["e", "e"], "rttMs": 2}],
    "policies": [
        {"file": "x.yml"},
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "x"},
            "spec": {"mtls": {"mode": "STRICT"}},
        },
    ],
}
VALUES = [None, True, 0, 1, 2.5, -1, 1e9, "", "x", "A_b", [], ["a"], ["a", "a"], {}, {"x": "y"}, {"name": "x"}]


def _places(value: object, path: tuple = ()) -> list[tuple]:
    found = [path]
    if isinstance(value, dict):
        found += [p for k, v in value.items() for p in _places(v, (*path, k))]
    if isinstance(value, list):
        found += [p for k, v in enumerate(value) for p in _places(v, (*path, k))]
    return found


def _with(path: tuple, value: object) -> object:
    document = json.loads(json.dumps(GOOD))
    if not path:
        return value
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return document


def _read_structurally(document: object) -> list[str]:
    """Problems of the shapes alone, before references."""
    reader = Reader("t.yml")
    (node,) = reader.documents(yaml.safe_dump(document)) or [None]
    if node is None:
        return ["empty"]
    topofile.DOCUMENT.read(node, reader)
    return reader.problems


def _at(path: tuple) -> object:
    value: object = GOOD
    for key in path:
        value = value[key]  # type: ignore[index]
    return value


_EXTRA = [_with((*path, "extra"), 1) for path in _places(GOOD) if isinstance(_at(path), dict)]
_LACKING = [
    _with(path[:-1], {k: v for k, v in _at(path[:-1]).items() if k != path[-1]})  # type: ignore[attr-defined]
    for path in _places(GOOD)
    if path and isinstance(_at(path[:-1]), dict)
]
CORPUS = [_with(path, value) for path in _places(GOOD) for value in VALUES if path or value is not None]
CORPUS += [*_EXTRA, *_LACKING, GOOD]


def test_schema_and_parser_agree_on_every_mutation_of_a_good_document() -> None:
    """Each place of a good document gets each of many values; both accept or both refuse, and both happen often."""
    verdicts = {True: 0, False: 0}
    for document in CORPUS:
        accepted = _VALIDATOR.is_valid(document)
        found = _read_structurally(document)
        assert accepted == (not found), (document, found, [e.message for e in _VALIDATOR.iter_errors(document)])
        verdicts[accepted] += 1

    assert min(verdicts.values()) > 20, verdicts
