"""A mutation run over the policy tables: each row is flipped once, and the tests of failover must notice.

``make mutants`` runs it; it is a pytest plugin as well, which flips the row that the environment names.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from gateway import policy
from gateway.errors import Stage
from gateway.kmip.spec import Operation, ResultReason
from gateway.policy import EFFECTS, MISSING, REFUSED_OPERATIONS, REPEATABLE, STREAMING, Effect

_VARIABLE = "KMIP_GATEWAY_MUTANT"
_COMMAND = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "tests.mutants", "--no-header"]
_TESTS = ["tests/test_failover.py", "tests/test_policy.py", "tests/test_knowledge.py"]

#: Tables that are read under another name, into which they were put together.
_READ_AS = {"STREAMING": ["STREAMING", "_JUDGED_BY_PAYLOAD"]}


def mutants() -> list[str]:
    """Every row of every table, by table and name."""
    effects = [f"EFFECTS:{operation.name}" for operation in Operation if operation not in REFUSED_OPERATIONS]
    stages = [f"REPEATABLE:{stage.name}" for stage in Stage]
    refused = [f"REFUSED_OPERATIONS:{operation.name}" for operation in Operation if operation in REFUSED_OPERATIONS]
    streaming = [f"STREAMING:{operation.name}" for operation in Operation if operation in STREAMING]
    missing = [f"MISSING:{reason.name}" for reason in sorted(MISSING)]
    return [*effects, *stages, *refused, *streaming, *missing]


def flip(mutant: str) -> None:
    """Make one row say what is wrong: what may be repeated may not, and the other way round."""
    table, _, name = mutant.partition(":")
    if table == "EFFECTS":
        effect = EFFECTS.get(Operation[name], Effect.MUTATE)
        EFFECTS[Operation[name]] = Effect.MUTATE if effect <= Effect.TOUCH else Effect.READ
    elif table == "REPEATABLE":
        REPEATABLE[Stage[name]] = Effect.READ if Stage[name] is Stage.CONNECT else Effect.MUTATE
    elif table == "MISSING":
        policy.MISSING -= {ResultReason[name]}  # type: ignore[misc]
    else:
        for where in _READ_AS.get(table, [table]):
            setattr(policy, where, getattr(policy, where) - {Operation[name]})


def pytest_configure() -> None:
    """Flip the row that the environment names, before any test is imported."""
    mutant = os.environ.get(_VARIABLE)
    if mutant:
        flip(mutant)


def survives(mutant: str) -> bool:
    """Whether all tests pass with this row flipped."""
    run = subprocess.run([*_COMMAND, *_TESTS], env=os.environ | {_VARIABLE: mutant}, capture_output=True, check=False)
    return run.returncode == 0


def main() -> int:
    """Run all mutants; print those that no test noticed."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        survivors = [mutant for mutant, alive in zip(mutants(), threads.map(survives, mutants()), strict=True) if alive]
    print(f"{len(mutants())} rows flipped, {len(mutants()) - len(survivors)} noticed")
    for mutant in survivors:
        print(f"not noticed: {mutant}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
