from pathlib import Path
from typing import Annotated, Optional

import typer

from aligngpt.cli.data import Device
from aligngpt.core.markup import echo

def doctor_command(
    target:Annotated[Path, typer.Argument(help='The folder of a run or of a model, or records.')],
    data:Annotated[Optional[list[Path]], typer.Option(help='Of a run: its records, if they are not where they were. '
                                                           'May be given several times.')]=None,
    images:Annotated[Optional[Path], typer.Option(help='The folder of the pictures; without it a run is examined '
                                                       'without its model.')]=None,
    processor:Annotated[Optional[Path], typer.Option(help='Of records: a model, whose processor makes '
                                                          'tokens of them.')]=None,
    out:Annotated[Optional[Path], typer.Option(help='Folder for a report: doctor.html, doctor.json, losses.png.')]=None,
    samples:Annotated[int, typer.Option(min=16, help='How many samples a model is shown.')]=160,
    device:Device='auto',
):
    """Say whether a run, records or a model are healthy, or what is wrong and what to do.
    The exit code is 1 if something serious is wrong."""
    from aligngpt.core.devices import quiet_libraries
    from aligngpt.insight.doctor import examine, write_verdict
    quiet_libraries()
    verdict = examine(target, data, images, processor, device, samples)
    echo(verdict)
    if out: echo(f'report: {write_verdict(verdict, out)}')
    if not verdict.healthy: raise typer.Exit(1)

def register_doctor(
    app:typer.Typer, # to add the command to
)->None:
    "Add `doctor`."
    app.command('doctor')(doctor_command)