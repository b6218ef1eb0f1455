"""The command `encnet`; `python -m encnet_jax` is the same."""

import sys

from encnet_jax.commands import VERBS, run


def main() -> None:
    """Runs the verb on the command line; exits with 2 if there is no such verb."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb in ("-h", "--help"):
        lines = [f"  {name:10}{summary}" for name, summary in VERBS.items()]
        print("\n".join(["usage: encnet VERB [--FLAG=VALUE ...]", "", *lines, ""]))
        print("encnet VERB --help describes a verb and its flags.")
        return
    if verb not in VERBS:
        problem = f"{verb!r}: no such verb" if verb else "no verb"
        print(f"error: {problem}; allowed are {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv[:2] = [f"encnet {verb}"]
    run(verb)


if __name__ == "__main__":
    main()
