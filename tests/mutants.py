"""Mutation run over the tables and numbers of failover and answers: each row is flipped once, and a test must fail.

``make mutants`` runs all mutants. This module is a pytest plugin as well, which flips the row that the environment
variable names.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from gateway import permissions, policy
from gateway.config import PolicyConfig
from gateway.errors import Stage
from gateway.kmip import answers
from gateway.kmip.groups import GROUPS, Group
from gateway.kmip.spec import Operation, ResultReason
from gateway.policy import EFFECTS, MISSING, REPEATABLE, SERVER_ERRORS, STREAMING, Effect
from gateway.upstream.opening import REFUSED

_VARIABLE = "KMIP_GATEWAY_MUTANT"
_COMMAND = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "tests.mutants", "--no-header"]
_TESTS = [
    "tests/test_policy.py",
    *(f"tests/dispatcher/test_{name}.py" for name in ("dispatcher_faults", "replication", "fallback_lookup")),
]
#: The tests for the mutants of other tables than those of policy.
_MORE_TESTS = [
    *(
        f"tests/upstream/test_{name}.py"
        for name in ("breaker", "ceiling", "gate", "opening", "pool", "pool_load", "reserve", "slots")
    ),
    "tests/dispatcher",
]
_MORE = ("SERVER_ERRORS", "REFUSED:", "NUMBER")
_TESTS_OF_ANSWERS = ["tests/kmip/test_answers.py"]
_TESTS_OF_GROUPS = ["tests/test_permissions.py"]

#: Numbers that decide about backends, by module, each with a wrong value.
_NUMBERS: dict[str, float] = {
    "gateway.upstream.breaker:_TRIALS": 1,
    "gateway.upstream.breaker:_FORGIVEN": 0.0,
    "gateway.upstream.breaker:_ALONE": 0.0,
    "gateway.upstream.breaker:_READS_FIRST": 0.0,
    "gateway.upstream.gate:_INITIAL": 1000,
    "gateway.upstream.gate:_MOST": 1000,
    "gateway.upstream.gate:_SLOW": 1000.0,
    "gateway.upstream.gate:_LONGEST_PAUSE": 1000.0,
    "gateway.upstream.opening:_YOUNG": 0.0,
    "gateway.upstream.endpoint:_DISTRUST": 0.0,
    "gateway.upstream.slots:STARVATION_DELAY": 1000.0,
    "gateway.upstream.slots:_UNUSED": 1000.0,
    "gateway.upstream.slots:_RECENT": 0.0,
    "gateway.upstream.slots:_RESERVE": 1000_000,
    "gateway.upstream.slots:_ABANDONED": 1,
    "gateway.upstream.ceiling:_SIGNS": 1000,
    "gateway.dispatcher.attempts:_DOUBT": 1000.0,
    "gateway.dispatcher.attempts:_AGAIN": 1000.0,
    "gateway.dispatcher.leasing:_ALWAYS": 1000.0,
    "gateway.dispatcher.attempts:_GRACE": 0.0,
    "gateway.dispatcher.dispatcher:_MAX_FAILURES": 1,
}

#: Tables that the code reads under further names.
_READ_AS = {"STREAMING": ["STREAMING", "_BY_PAYLOAD"]}


def mutants() -> list[str]:
    """Return every row of every table, as "TABLE:name"."""
    never = {operation for operation in Operation if GROUPS[operation] in {Group.NEVER, Group.BY_NAME}}
    effects = [f"EFFECTS:{operation.name}" for operation in Operation if operation not in never or operation == 0x33]
    stages = [f"REPEATABLE:{stage.name}" for stage in Stage]
    groups = [f"GROUPS:{operation.name}" for operation in Operation]
    streaming = [f"STREAMING:{operation.name}" for operation in Operation if operation in STREAMING]
    missing = [f"MISSING:{reason.name}" for reason in sorted(MISSING)]
    errors = [f"SERVER_ERRORS:{reason.name}" for reason in sorted(SERVER_ERRORS)]
    credentials = [f"REFUSED:{reason}" for reason in sorted(REFUSED)]
    numbers = [f"NUMBER:{number}" for number in _NUMBERS]
    repeating = [f"REPEATING:{operation.name}" for operation in Operation]
    making = [f"MAKING:{operation.name}" for operation in Operation if operation is not Operation.POLL]  # makes nothing
    placeholder = [f"PLACEHOLDER:{Operation(number).name}" for number in answers.PLACEHOLDER]
    of_failover = [*effects, *stages, *groups, *streaming, *missing, *errors, *credentials, *numbers]
    return [*of_failover, *repeating, *making, *placeholder]


def flip(mutant: str) -> None:
    """Make one row wrong: a request that may be repeated may not, and the other way round.

    An operation that is in REPEATING or MAKING is removed, any other operation is added.
    """
    table, _, name = mutant.partition(":")
    if table == "EFFECTS":
        effect = EFFECTS.get(Operation[name], Effect.MUTATE)
        EFFECTS[Operation[name]] = Effect.MUTATE if effect.is_read else Effect.READ
    elif table == "REPEATABLE":
        REPEATABLE[Stage[name]] = Effect.READ if Stage[name] is Stage.CONNECT else Effect.MUTATE
    elif table == "GROUPS":
        group = GROUPS[Operation[name]]
        GROUPS[Operation[name]] = Group.USE if group is Group.READ else Group.READ
        permissions.UNRESTRICTED.change(PolicyConfig())
    elif table in {"MISSING", "SERVER_ERRORS"}:
        setattr(policy, table, getattr(policy, table) - {ResultReason[name]})
    elif table in {"REPEATING", "MAKING"}:
        setattr(answers, table, getattr(answers, table) ^ {Operation[name]})
    elif table == "PLACEHOLDER":
        del answers.PLACEHOLDER[Operation[name]]
    elif table == "REFUSED":
        for module in ("upstream.opening", "upstream.pool", "dispatcher.dispatcher"):
            setattr(import_module(f"gateway.{module}"), table, REFUSED - {name})
    elif table == "NUMBER":
        module, _, number = name.partition(":")
        setattr(import_module(module), number, _NUMBERS[name])
    else:
        for where in _READ_AS.get(table, [table]):
            setattr(policy, where, getattr(policy, where) - {Operation[name]})


def pytest_configure() -> None:
    """Flip the row that the environment names, before any test is imported."""
    mutant = os.environ.get(_VARIABLE)
    if mutant:
        flip(mutant)


def survives(mutant: str) -> bool:
    """Return True if all tests pass with this row flipped."""
    table = mutant.partition(":")[0]
    tests = _MORE_TESTS if mutant.startswith(_MORE) else _TESTS_OF_ANSWERS if hasattr(answers, table) else _TESTS
    tests = _TESTS_OF_GROUPS if table == "GROUPS" else tests
    run = subprocess.run([*_COMMAND, *tests], env=os.environ | {_VARIABLE: mutant}, capture_output=True, check=False)
    return run.returncode == 0


def main() -> int:
    """Run all mutants; print the survivors."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        survivors = [mutant for mutant, alive in zip(mutants(), threads.map(survives, mutants()), strict=True) if alive]
    print(f"{len(mutants())} rows flipped, {len(mutants()) - len(survivors)} noticed")
    for mutant in survivors:
        print(f"not noticed: {mutant}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
