"""What the shared tester asks of adaptive clusters, as a mixin."""

import pytest
from family import FamilyTester, is_accelerated

import hf_tokaccel as ta

# Two steps: the second goes on from what the first block on clusters made of all tokens. One round of matching each
# keeps graphs small; those of many rounds are in tests/clustering.
ADAPTIVE = {"cluster_after": [1, 2], "clusters": [0.5, 0.25], "round_share": 0.5}

FORMS = (
    {"expansion": "nearest"},
    {"size_attention": False},
    {"reconstruct_after": 3},
    {"cluster_after": 1, "clusters": 0.5},
    {"clusters": [30, 17], "similarity_on": "tokens"},
    {"cluster_after": [0, 1, 2], "clusters": [0.8, 36, 0.3], "tile": 4},
    {"expansion": "nearest", "size_attention": False, "reconstruct_after": 3, "round_share": 0.2},
)


class Adaptive:
    """Ahead of a family's tester: `class TestDinov2Adaptive(Adaptive, Dinov2Tester)`.

    Its wrappers are those of the family's other classes, so graphs and processes are for `make test-slow`; one class
    of each kind of host has `AdaptiveInFull` instead.
    """

    accel = ADAPTIVE
    secondary = True
    flop_ratio = 0.97

    # What does not depend on the setting is the other classes' to show.
    test_recommended_setting_runs_and_can_be_switched_off = None
    test_adaptive_clusters_run_or_are_refused = None
    test_shortest_auto_path = None
    test_frames_that_do_not_fill_clips_are_refused = None
    test_image_that_is_no_multiple_of_the_patch_is_refused = None
    test_threads_do_not_disturb_each_other = None

    @classmethod
    def all_forms(cls):
        return FORMS

    @property
    def identity(self):
        return {**self.accel, "clusters": [1.0, 1.0], "expansion": "nearest"}

    def test_identity_plan_is_native(self, model, native_output):
        for form in ({}, {"size_attention": False}, {"expansion": "delta"}):
            actual = self.run(ta.accelerate(model, {**self.identity, **form}), self.images())
            # A change that is added to the token rounds, less than native differs between eager and sdpa.
            self.assert_close(actual, native_output, self.tolerance if "expansion" in form else 0)

    @pytest.mark.parametrize("legacy", [False], ids=["new_keys"])
    def test_native_checkpoint_loads(self, model, tmp_path, legacy):
        super().test_native_checkpoint_loads(model, tmp_path, legacy)

    def test_clusters_that_weigh_more_are_attended_to_more(self, model, fast):
        plain = ta.accelerate(model, {**self.accel, "size_attention": False})
        self.assert_differs(self.run(plain, self.images()), self.run(fast, self.images()))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"cluster_after": [1, 99]}, r"cluster_after=\(1, 99\) .*between 0 and .*cluster_after=\(\d, \d\)"),
            ({"cluster_after": [2, 1]}, r"cluster_after=\(2, 1\) .*rise"),
            ({"clusters": 0.5}, r"clusters=0.5 .*2 numbers.*clusters=\(0.85, 0.72\)"),
            ({"cluster_after": 1}, r"clusters=\(0.5, 0.25\) .*one number.*clusters=0.5"),
            ({"clusters": [0.25, 0.5]}, r"clusters=\(0.25, 0.5\) .*no more than the step before"),
            ({"clusters": [1.5, 0.5]}, r"clusters=\(1.5, 0.5\) .*share.*count"),
            ({"cluster_grid": [4, 4]}, r"clusters=.*None when cluster_grid is given"),
            ({"window": 3}, "window=3 .*for adaptive clusters.*window=5"),
            ({"expansion": "soft"}, "expansion='soft' .*expansion='delta'"),
            ({"normalization": "l1"}, "normalization='l1' .*normalization=None"),
            ({"size_attention": "yes"}, "size_attention='yes' .*True or False"),
            ({"round_share": 0.6}, "round_share=0.6 .*round_share=0.2"),
            ({"tile": 3}, "tile=3 .*even.*tile=16"),
        ],
    )
    def test_bad_settings_are_refused_when_they_are_given(self, model, fast, change, message):
        super().test_bad_settings_are_refused_when_they_are_given(model, fast, change, message)

    def test_more_clusters_than_tokens_are_refused(self, model):
        tokens = self.grid[0] * self.grid[1]
        bad = {"cluster_after": 1, "clusters": tokens + 1}
        message = rf"clusters={tokens + 1} .*at most as many clusters as tokens \({tokens}\).*for example clusters=0.5"
        with pytest.raises(ValueError, match=message):
            self.run(ta.accelerate(model, bad, self.large), self.images())
        with pytest.raises(ValueError, match=message):
            ta.accelerate(model, bad, image_size=self.image_size)
        assert not any(map(is_accelerated, model.modules()))


class AdaptiveInFull(Adaptive):
    """For one class of each kind of host; a fresh process loads one, since what loads a folder knows no clusters."""

    secondary = False
    test_fresh_process_with_and_without_the_package_imported = None
    test_threads_do_not_disturb_each_other = FamilyTester.test_threads_do_not_disturb_each_other
