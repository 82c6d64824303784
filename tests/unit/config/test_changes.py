from rtmpd.config.changes import changes
from rtmpd.config.loader import load_text


def test_changes_are_named_with_their_new_values_and_without_secrets():
    old = load_text("[live]\nkeyframe_wait_s = 3\n[applications]\n[[a]]\n[[b]]\ngop_cache = no\n[[c]]\n")
    new = load_text(
        "[server]\nlisten = :1936\n[live]\nkeyframe_wait_s = 5\n[auth]\nauth_sign_secrets = hidden-word-of-16\n"
        "[applications]\n[[a]]\n[[b]]\nkeyframe_wait_s = 9\n[[d]]\n"
    )
    found = changes(old, new)
    assert found[:2] == ["[server] listen = :1936", "[live] keyframe_wait_s = 5"]
    assert "hidden" not in str(found)
    assert [each for each in found if each.startswith("[auth] auth_sign_secrets = ")]
    assert found[3:] == ["[[b]] gop_cache = yes", "[[b]] keyframe_wait_s = 9", "-[[c]]", "+[[d]]"]


def test_equal_configurations_have_no_changes():
    text = "[applications]\n[[a]]\ngop_cache = no\n"
    assert changes(load_text(text), load_text(text)) == []
