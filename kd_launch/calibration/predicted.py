"""What the cost model says of each thing that a probe measures, by the functions that the planner calls."""

from dataclasses import dataclass

from kd_launch.architecture import Architecture
from kd_launch.cluster import Cluster
from kd_launch.cost.collectives import Collective, Group
from kd_launch.cost.compute import optimizer_seconds
from kd_launch.cost.roles import fault_seconds, student_seconds, teacher_seconds
from kd_launch.cost.setting import Setting, Site, StudentDegrees, TeacherDegrees
from kd_launch.planner.search import setting_of, sites_of
from kd_launch.probe import ProbeOrder, Sample
from kd_launch.spec import Spec

WHOLE_TEACHER = TeacherDegrees(1, 1, 1)
WHOLE_STUDENT = StudentDegrees(1, 1, False, None)


@dataclass(frozen=True)
class Uncalibrated:
    """The cost model of a probe's models on its pools, without any factor."""

    setting: Setting
    sites: dict[str, Site]

    @staticmethod
    def of(
        spec: Spec, cluster: Cluster, teacher: Architecture, student: Architecture, order: ProbeOrder
    ) -> "Uncalibrated":
        pools = tuple(pool.model_copy(update={"calibration": None}) for pool in cluster.pools)
        bare = cluster.model_copy(update={"pools": pools})
        cut = teacher.with_layers(order.teacher_layers), student.with_layers(order.student_layers)
        return Uncalibrated(setting_of(spec, *cut), sites_of(spec, bare))

    def seconds(self, sample: Sample) -> float:
        """Of one thing that was measured."""
        setting, site = self.setting, self.sites[sample.pool]
        tokens = sample.size * setting.sequence_length
        match sample.term:
            case "teacher":
                payload = sample.payload or "logits"
                return teacher_seconds(setting, site, WHOLE_TEACHER, 1, tokens, payload).each
            case "student" | "loss":
                step = student_seconds(setting, site, WHOLE_STUDENT, 1, tokens, 1, "logits")
                return step.loss if sample.term == "loss" else step.forward + step.backward
            case "optimizer":
                assert site.student_device is not None
                return optimizer_seconds(site.student_device, sample.size, setting.engine)
            case "fresh_memory":
                assert site.teacher_device is not None
                return fault_seconds(setting, site, sample.size) + sample.size / site.teacher_device.bytes_per_s
            case "message":
                return site.fabric.message_seconds(sample.size, between_nodes=False)
        group = Group(sample.ranks, min(sample.ranks, site.pool.gpus_per_node))
        if sample.term == "tensor_parallel":
            return site.fabric.stop_seconds(sample.size, group)
        return site.fabric.seconds(Collective(sample.term), sample.size, group)
