"""The errors: the text of an error, and the stages of an attempt at a backend in order."""

from gateway.errors import BackendError, ConfigError, Stage


def test_a_backend_error_names_the_backend_the_stage_and_the_reason() -> None:
    error = BackendError("refused by 10.0.0.1", backend="atlanta", stage=Stage.WAIT, reason="closed")

    assert str(error) == "atlanta: refused by 10.0.0.1 (wait: closed)"


def test_stages_are_in_the_order_of_an_attempt() -> None:
    assert [stage.name for stage in sorted(Stage)] == ["CONNECT", "SEND", "WAIT", "READ"]


def test_a_configuration_error_has_a_line_for_each_mistake() -> None:
    error = ConfigError(["a.toml: admin.bind: missing", "a.toml: log.level: unknown"])

    assert str(error).splitlines() == error.mistakes
