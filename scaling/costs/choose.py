"""The costs of a model on a machine by the best that is known of it."""

from scaling.costs.base import NodeCosts
from scaling.costs.model_costs import ModelCosts
from scaling.costs.roofline import RooflineCosts
from scaling.machines import Machine
from scaling.shape import Shape


def costs_of(
    machine: Machine,
    shape: Shape,
    *,
    form: str,
    threads: float | None = None,
    shared_form: str | None = None,
) -> NodeCosts:
    """`form`: of the experts' matrices; `shared_form`: of the others, None: the same. Of a machine without
    rates, the roofline. Raises ConfigError for a form that there is not."""
    if machine.rates:
        return ModelCosts.of(machine, shape, form=form, threads=threads, shared_form=shared_form)
    return RooflineCosts.of(machine, shape, form=form, threads=threads, shared_form=shared_form)
