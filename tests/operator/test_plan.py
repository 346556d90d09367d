"""The planner, driven through random histories and a few named stories."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from build_recipes import CONTENT, make_recipes
from egt_operator.plan import UNKNOWN, Observed, Past, Phase, Task, forecast, plan
from egt_pipeline.contract.chain import Link, chain
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.graph import StageName

NOTHING = Observed(published=frozenset(), started={})


def links_of(content: dict[str, str] | None = CONTENT, **changes: dict[str, object]) -> dict[StageName, Link]:
    return chain(make_recipes(**changes), source_fingerprint="f0", prepared=content)


def tasks_of(links: dict[StageName, Link], *names: StageName) -> frozenset[Task]:
    return frozenset(Task(name, links[name].known_digest()) for name in names or links)


def past_of(link: Link) -> Past:
    inputs = {name: ref.identity for name, ref in (link.inputs or {}).items()}
    return Past(link.known_digest(), link.recipe.model_dump(mode="json", by_alias=True), inputs)


def test_a_fresh_run_starts_with_prepare_alone() -> None:
    links = links_of(content=None)
    assert plan(links, NOTHING).tasks == tasks_of(links, StageName.PREPARE)


def test_digests_after_prepare_are_unknown_until_it_has_read_the_data() -> None:
    lines = forecast(links_of(content=None), frozenset(), {})
    assert {line.reason for line in lines[1:]} == {UNKNOWN}
    assert {line.action for line in lines} == {"run"}


def test_a_finished_run_wants_nothing() -> None:
    links = links_of()
    done = plan(links, Observed(published=tasks_of(links), started={}))
    assert done.complete
    assert done.tasks == frozenset()


def test_a_changed_curation_runs_curate_rl_and_evaluate_only_and_says_why() -> None:
    before, after = links_of(), links_of(curate={"keep": {"share": 0.3}})
    past = {name: past_of(link) for name, link in before.items()}
    lines = {line.name: line for line in forecast(after, tasks_of(before), past)}
    assert [name for name, line in lines.items() if line.action == "run"] == ["curate", "rl", "evaluate"]
    assert lines[StageName.CURATE].reason == "keep.share: 0.15 -> 0.3"
    assert lines[StageName.RL].reason == "input selection changed"


def test_data_prepared_anew_with_the_same_content_reuse_everything_after() -> None:
    before = links_of()
    after = chain(make_recipes(), source_fingerprint="f1", prepared=CONTENT)
    wanted = [line.name for line in forecast(after, tasks_of(before), {}) if line.action == "run"]
    assert wanted == ["prepare"]


def test_permuted_labels_do_not_reach_probe_and_curate() -> None:
    before = links_of(without=("distill",))
    after = links_of({**CONTENT, "rl": "r1"}, without=("distill",))
    changed = [name for name in before if before[name].digest != after[name].digest]
    assert changed == ["rl", "evaluate"]


def test_the_accuracy_baseline_does_depend_on_labels() -> None:
    change = {"curate": {"baseline": "accuracy"}}
    before, after = links_of(**change), links_of({**CONTENT, "rl": "r1"}, **change)
    assert before[StageName.CURATE].digest != after[StageName.CURATE].digest


def test_where_a_teacher_answers_does_not_count_but_which_one_does() -> None:
    here = links_of(distill={"teacher": {"model": "a", "baseUrl": "http://here/v1", "concurrency": 2}})
    there = links_of(distill={"teacher": {"model": "a", "baseUrl": "http://there/v1", "concurrency": 9}})
    other = links_of(distill={"teacher": {"model": "b", "baseUrl": "http://here/v1"}})
    assert here[StageName.SFT].digest == there[StageName.SFT].digest
    assert here[StageName.SFT].digest != other[StageName.SFT].digest


@pytest.mark.parametrize(("disabled", "user"), [("sft", "probe"), ("probe", "curate"), ("curate", "rl")])
def test_a_stage_that_needs_a_disabled_one_is_refused_by_name(disabled: str, user: str) -> None:
    with pytest.raises(TaskError, match=rf"spec\.{disabled}\.enabled.*{user} needs it"):
        links_of(without=(disabled,))


def test_distill_rl_and_evaluate_may_be_left_out() -> None:
    links = links_of(without=("distill", "rl", "evaluate"))
    assert plan(links, Observed(published=tasks_of(links), started={})).complete
    assert "trajectories" not in (links[StageName.SFT].inputs or {})


@given(st.sampled_from(list(StageName)), st.sampled_from(list(StageName)))
def test_a_digest_changes_exactly_for_a_stage_and_what_comes_after(changed: StageName, looked_at: StageName) -> None:
    fields = {
        "prepare": {"seed": 5}, "distill": {"attempts": 2}, "sft": {"seed": 5}, "probe": {"seed": 5},
        "curate": {"seed": 5}, "rl": {"seed": 5}, "evaluate": {"batchSize": 7},
    }  # fmt: skip
    after_it = {
        "prepare": {"prepare"},  # its content is the same, so nothing after it moves
        "distill": {"distill", "sft", "probe", "curate", "rl", "evaluate"},
        "sft": {"sft", "probe", "curate", "rl", "evaluate"},
        "probe": {"probe", "curate", "rl", "evaluate"},
        "curate": {"curate", "rl", "evaluate"},
        "rl": {"rl", "evaluate"},
        "evaluate": {"evaluate"},
    }
    base = {"prepare": {"model": {"source": "m"}, "data": {"sft": {"source": "a.jsonl"}, "rl": {"source": "b.jsonl"}}},
            "distill": {"teacher": {"model": "t"}}}  # fmt: skip
    plain = links_of(**base)
    moved = links_of(**{**base, changed: {**base.get(changed, {}), **fields[changed]}})
    differs = plain[looked_at].digest != moved[looked_at].digest
    assert differs == (looked_at in after_it[changed])


class RandomHistory(RuleBasedStateMachine):
    """A world that obeys the plan while stages finish, fail, lose artifacts, and the spec is edited."""

    @initialize()
    def fresh(self) -> None:
        self.share = 0.15
        self.published: set[Task] = set()
        self.started: dict[Task, Phase] = {}
        self.obey()

    def links(self) -> dict[StageName, Link]:
        recipes = make_recipes(curate={"keep": {"share": self.share}})
        prepare = chain(recipes, source_fingerprint="f0", prepared=None)[StageName.PREPARE]
        ready = Task(StageName.PREPARE, prepare.known_digest()) in self.published
        return chain(recipes, source_fingerprint="f0", prepared=CONTENT if ready else None)

    def obey(self) -> None:
        self.plan = plan(self.links(), Observed(self.published, self.started))
        for task in [task for task in self.started if task not in self.plan.tasks]:
            digest = self.links()[task.stage].digest
            assert digest is not None, "a running stage was deleted although nobody knows that it is outdated"
            assert task in self.published or task.digest != digest, "something current and unfinished was deleted"
            del self.started[task]
        for task in self.plan.tasks:
            inputs = (self.links()[task.stage].inputs or {}).values()
            fresh = task not in self.started
            assert not fresh or all(Task(ref.stage, ref.digest) in self.published for ref in inputs)
            self.started.setdefault(task, Phase.RUNNING)

    @rule(data=st.data())
    @precondition(lambda self: any(phase is Phase.RUNNING for phase in self.started.values()))
    def a_running_stage_ends(self, data: st.DataObject) -> None:
        running = sorted((t for t, p in self.started.items() if p is Phase.RUNNING), key=str)
        task = data.draw(st.sampled_from(running))
        if data.draw(st.booleans()):
            self.published.add(task)
        else:
            self.started[task] = Phase.FAILED
        self.obey()

    @rule()
    def failures_are_retried(self) -> None:
        self.started = dict.fromkeys(self.started, Phase.RUNNING)
        self.obey()

    @rule(data=st.data())
    @precondition(lambda self: bool(self.published))
    def an_artifact_disappears(self, data: st.DataObject) -> None:
        self.published.discard(data.draw(st.sampled_from(sorted(self.published, key=str))))
        self.obey()

    @rule(share=st.sampled_from([0.15, 0.3]))
    def the_curation_is_edited(self, share: float) -> None:
        self.share = share
        self.obey()

    @invariant()
    def planning_twice_changes_nothing(self) -> None:
        if hasattr(self, "plan"):
            again = plan(self.links(), Observed(self.published, self.started))
            assert again.tasks == self.plan.tasks

    @invariant()
    def one_task_a_stage(self) -> None:
        if hasattr(self, "plan"):
            stages = [task.stage for task in self.plan.tasks]
            assert len(stages) == len(set(stages))


TestRandomHistory = RandomHistory.TestCase
TestRandomHistory.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
