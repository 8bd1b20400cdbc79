"""`attune compare`: versions side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Device, Dtype, Home, Seed, bar, emit, open_workspace, table

if TYPE_CHECKING:
    from alignment.circle.compare import Result
    from alignment.circle.workspace import Workspace


def compare(
    candidate: Annotated[str | None, typer.Argument(help="The version to test.", show_default=False)] = None,
    opponents: Annotated[
        list[str] | None, typer.Argument(help="The versions it meets; default tiny-base.", show_default=False)
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(min=2, help="Held-out captions to sing; default 60 without other prompts.", show_default=False),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt in words; may be given several times.")] = None,
    prompt_set: Annotated[str | None, typer.Option(help="A recorded prompt set.", show_default=False)] = None,
    split: Annotated[
        Literal["valid", "test", "leaderboard"] | None,
        typer.Option(help="All recorded prompts of a split.", show_default=False),
    ] = None,
    clips: Annotated[int, typer.Option(min=2, max=32, help="Clips of each prompt and version.")] = 2,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            max=30,
            help="Length of a clip; default, as of the next three, as people hear the first version.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.01, max=5, show_default=False)] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Keep the k likeliest codes; 0 keeps all.", show_default=False)
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=1, max=20, help="Classifier-free guidance; 1 is none.", show_default=False)
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Of FAD and kernel distance: base, version:NAME, a folder of audio, or none.")
    ] = "base",
    reward: Annotated[
        list[str] | None, typer.Option(help="Reward model to score with, again for more; default the newest.")
    ] = None,
    clap: Annotated[str | None, typer.Option(help="Folder or hub name of another CLAP.", show_default=False)] = None,
    battles: Annotated[
        Literal["simulated", "human", "none"],
        typer.Option(help="Who votes: SIMULATED listeners at once, people in a study that is drafted, or nobody."),
    ] = "simulated",
    votes: Annotated[int, typer.Option(min=2, help="Simulated votes against each other version.")] = 180,
    raters: Annotated[int, typer.Option(min=2)] = 8,
    population: Annotated[str, typer.Option(help="A population of configs/listeners.yaml.")] = "default",
    name: Annotated[str | None, typer.Option(help="Name of the comparison; default made up.")] = None,
    recorded: Annotated[
        str | None,
        typer.Option(help="Show this comparison with the votes it has by now; nothing is sung.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write an HTML page with players here.", show_default=False)
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Let versions sing the same prompts, measure them, and let SIMULATED listeners or people compare them blind."""
    from alignment.circle import compare as stages
    from alignment.circle.compare_recipe import CompareRecipe
    from alignment.config import parse_recipe
    from alignment.errors import DataError

    if (candidate is None) == (recorded is None):
        raise DataError("Name the version to test, or --recorded and a comparison; not both.")
    if recorded is not None:
        ws = open_workspace(home, database)
        _show(stages.recorded(ws, recorded), ws, report, as_json)
        return
    given = bool(prompt or prompt_set or split)
    recipe = parse_recipe(
        {
            "versions": [candidate, *(opponents or ["tiny-base"])], "name": name, "prompts": prompt or [],
            "prompt_set": prompt_set, "split": split,
            "captions": prompts if prompts is not None else 0 if given else 60,
            "battles": battles, "votes": votes, "raters": raters, "population": population,
            "metrics": {
                "generation": {"temperature": temperature, "top_k": top_k, "guidance": guidance,
                               "clip_seconds": seconds},
                "clips_per_prompt": clips, "reference": reference, "reward_models": reward, "clap": clap, "seed": seed,
            },
        },
        CompareRecipe, origin="compare",
    )  # fmt: skip
    ws = open_workspace(home, database)
    _show(stages.compare(ws, recipe, bar=bar), ws, report, as_json)


def _show(result: Result, ws: Workspace, report: Path | None, as_json: bool) -> None:
    from alignment.circle.compare import write_comparison

    path = str(write_comparison(ws, result.comparison.name, report)) if report else None
    emit(_value(result, path), _told(result, path), as_json)


def _value(result: Result, page: str | None) -> dict[str, Any]:
    """One JSON object; the fields of a single contest are those of the first opponent."""
    found, contests = result.comparison, result.contests
    rate = contests[0].rate if contests else None
    return {
        "comparison": found.name, "candidate": found.versions[0],
        "opponent": found.versions[1] if found.versions[1:] else None,
        "versions": list(found.versions), "win_rate": rate and rate.value, "win_rate_low": rate and rate.low,
        "win_rate_high": rate and rate.high, "votes": rate.votes if rate else 0,
        "decisive_votes": rate.decisive if rate else 0, "verdict": rate and rate.verdict, "report": page,
        "simulated": result.simulated_votes or found.simulated, "study": result.study,
        "contests": [
            {"candidate": c.rate.candidate, "opponent": c.rate.opponents[0], "win_rate": c.rate.value,
             "win_rate_low": c.rate.low, "win_rate_high": c.rate.high, "votes": c.rate.votes,
             "decisive_votes": c.rate.decisive, "verdict": c.rate.verdict}
            for c in contests
        ],
        "metrics": found.to_json()["metrics"], "differences": found.to_json()["differences"],
    }  # fmt: skip


def _told(result: Result, page: str | None) -> str:
    from alignment.evaluation.compare_page import metric_lines, win_rate_line

    found = result.comparison
    lines = [
        f"{found.name}: {found.about['prompts']} prompts, {found.about['clips']} clips of each version"
        + ("; simulated votes trained one of them" if found.simulated else ""), "",
        table([dict(row) for row in metric_lines(found)], ["metric", *found.versions, "n"]), "",
        f"*: {found.versions[0]} differs from this version, prompt by prompt (one in twenty does by chance).",
    ]  # fmt: skip
    lines += [win_rate_line(contest) for contest in result.contests]
    if result.study:
        lines.append(f"Study {result.study} is drafted for people; open it with: attune study open '{result.study}'")
    return "\n".join(lines + ([f"Page: {page}"] if page else []))
