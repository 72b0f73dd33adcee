"""Rows of several models are brought together only where they answer the same texts."""

from __future__ import annotations

import msgspec
import pytest
from study_rows import ARMS, append_judged, attack_rows, probe_rows, trained

from curricula.errors import UserError
from curricula.eval.analysis import StudyRows, read_study_rows
from curricula.eval.analysis.claims import CLAIMS, run_claim_tests
from curricula.eval.analysis.runs import runs_of
from curricula.eval.rows import write_rows

TWO = [ARMS[0], ARMS[-1]]


def asked(run, decoder: str, **changes: str):
    """Two arms, of which the second has answered prompt 3 with these changes."""
    for arm in TWO:
        rows = attack_rows(arm, "instruct", decoder, 0.5, 1, {"ours": 5})
        if arm is TWO[1]:
            rows[3] = msgspec.structs.replace(rows[3], **changes)
        append_judged(run / "eval" / arm.key / "instruct" / f"{rows[0].task}.jsonl", rows)
    return read_study_rows(run, TWO)


@pytest.mark.parametrize("changes", [{"behavior": "another"}, {"context": "another"}, {"prompt": "another"}])
def test_arms_that_were_asked_different_requests_under_one_name_are_refused(tmp_path, changes):
    with pytest.raises(UserError, match=r"safe-100.*prompt 3 of ours is a different request from that in .*data-0") as refused:
        asked(tmp_path, "topk", **changes)
    first, second = (tmp_path / "eval" / arm.key / "instruct/attacks-topk" for arm in TWO)  # the folders of the answers
    assert f"remove ours*.jsonl in {second} or in {first}, whichever has the older prompts" in str(refused.value)


def test_stages_that_were_asked_different_requests_under_one_name_are_refused(tmp_path):
    for stage, behavior in (("instruct", "a"), ("benign", "b")):
        rows = attack_rows(ARMS[0], stage, "topk", 0.5, 1, {"ours": 5})
        rows[3] = msgspec.structs.replace(rows[3], behavior=behavior)
        append_judged(tmp_path / f"eval/{ARMS[0].key}/{stage}/attacks-topk.jsonl", rows)
    with pytest.raises(UserError, match=r"benign/.*prompt 3 of ours is a different request from that in .*instruct/"):
        read_study_rows(tmp_path, [ARMS[0]])


def test_what_an_attack_makes_of_a_request_may_differ_from_arm_to_arm(tmp_path):
    assert len(asked(tmp_path, "gcg+topk", prompt="a suffix of its own").generations) == 2


def test_arms_whose_probes_name_other_texts_are_refused(tmp_path):
    def read(*texts: str) -> StudyRows:
        for arm, of in zip(TWO, texts):
            rows = [msgspec.structs.replace(row, texts=of) for row in probe_rows(arm, "base", "last", 0.8)]
            write_rows(tmp_path / f"eval/{arm.key}/base/probes.jsonl", rows)
        return read_study_rows(tmp_path, TWO)

    assert [len(read(*texts).probes) for texts in (("a", "a"), ("", "a"))] == [2, 2]  # "": of an earlier version
    with pytest.raises(UserError, match=r"safe-100.*: its probes read other texts than those in .*data-0.*; remove"):
        read("a", "b")


def test_probes_of_other_texts_are_not_compared():
    def outcome(length_auc: float) -> str:
        arms = [trained(arm, seed) for seed in (1, 2, 3) for arm in ARMS]
        probes = {
            (arm.key, "base"): [
                msgspec.structs.replace(row, baseline_length_auc=length_auc if arm.name == "full-0" else 0.56)
                for row in probe_rows(arm, "base", "last", 0.8 + 0.1 * (arm.name == "full-0"))
            ]
            for arm in arms
        }
        runs = runs_of(StudyRows(tuple(arms), {}, probes))
        (test,) = run_claim_tests(runs, [one for one in CLAIMS if one.id == "probe-tags-beat-data"])
        return test.outcome

    assert [outcome(auc) for auc in (0.56, 0.44, 0.57)] == ["reproduced", "reproduced", "not measured"]
