"""Routes of what comes before the first pair: practice pairs and check sounds. They need no session and no database."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from rating_app import practice
from rating_app.sending import NO_STORE, audio_answer

router = APIRouter()


def _url(data: bytes) -> str:
    return f"/clip/practice/{practice.address(data)}"


@router.get("/rate/practice")
def practice_pairs() -> Response:
    """Every practice pair, the most telling first; the page takes as many as the study asks for."""
    pairs = [
        {
            "id": f"practice-{number}",
            "prompt": pair.prompt,
            "first_side": "left",
            "clips": {side.value: _url(clip) for side, clip in pair.clips.items()},
            "lesson": pair.lesson,
            "notes": {side.value: note for side, note in pair.notes.items()},
        }
        for number, pair in enumerate(practice.practice_pairs(), start=1)
    ]
    return JSONResponse({"pairs": pairs}, headers=NO_STORE)


@router.get("/rate/check")
def check_sounds() -> Response:
    """The steady sound for the volume, and the trials of the headphone check with the interval that is quieter."""
    step = practice.TONE_SECONDS + practice.TONE_GAP_SECONDS
    trials = [
        {
            "url": _url(trial.flac),
            "quiet": trial.quiet,
            "starts": [0.0, step, 2 * step],
            "tone_seconds": practice.TONE_SECONDS,
        }
        for trial in practice.tone_trials()
    ]
    return JSONResponse({"level": _url(practice.level_sound()), "trials": trials}, headers=NO_STORE)


@router.api_route("/clip/practice/{name}", methods=["GET", "HEAD"])
def practice_clip(name: str, request: Request) -> Response:
    """One sound, sent in the same words as a study's clips."""
    data = practice.sounds().get(name)
    if data is None:
        raise HTTPException(404, "There is no such sound.")
    return audio_answer(request, data)
