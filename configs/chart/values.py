"""The chart's own values beside `config`: one model a section of `helm/sparktier/values.yaml`, which has the defaults.

Keys are written in camel case there, as Helm charts have them. An empty text means that nothing is named.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Quantity = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?)?$")]
Object = Mapping[str, Any]
Objects = Sequence[Object]


class ChartSection(BaseModel):
    """One block of the values, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", alias_generator=to_camel)


class ImageValues(ChartSection):
    """The image that every pod runs."""

    repository: str = Field(min_length=1, description="Name of the image, with its registry.")
    tag: str = Field(
        description="Tag; empty takes the chart's appVersion, and `-cpu` with `config.replicas.device: cpu`."
    )
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(description="When nodes pull it.")
    pull_secrets: Sequence[str] = Field(description="Names of Secrets that open its registry.")


class SecretKey(ChartSection):
    """One entry of a Secret that exists already."""

    name: str = Field(description="Name of the Secret, in the namespace of the release.")
    key: str = Field(min_length=1, description="Its entry.")


class SecretValues(ChartSection):
    """Secrets by reference: the chart makes none, so that none is in a manifest."""

    replica_keys: SecretKey = Field(description="The two keys of the replicas' own ports, as `keys.json`.")
    tenants: SecretKey = Field(description="The keys file of tenants, hashes alone.")
    pepper: SecretKey = Field(description="The pepper that tenants' keys are hashed with.")
    hub_token: SecretKey = Field(description="Token of the model hub for gated models; no name: none.")


class RdmaValues(ChartSection):
    """Network cards of a replica that spans nodes."""

    resource: str = Field(description="Extended resource of the cards, as `rdma/hca`; empty: none.")
    count: int = Field(ge=1, description="How many each pod asks for; each pod may then lock memory.")


class EngineValues(ChartSection):
    """The pods of replicas."""

    port: int = Field(ge=1024, le=65535, description="Port of a replica's HTTP server.")
    gpu_resource: str = Field(min_length=1, description="Extended resource of GPUs; each pod asks for one a rank.")
    cpu: Quantity = Field(min_length=1, description="CPUs of a pod.")
    memory: Quantity = Field(min_length=1, description="Memory of a pod, request and limit.")
    shared_memory: Quantity = Field(min_length=1, description="Size of /dev/shm, which counts as memory of the pod.")
    scratch: Quantity = Field(min_length=1, description="Size of /tmp, with Ray's logs and sockets.")
    start_seconds: int = Field(ge=60, le=86400, description="Longest that a start may take: weights and kernels.")
    drain_seconds: int = Field(ge=0, le=3600, description="How long a pod that is to end goes on answering.")
    rdma: RdmaValues = Field(description="Network cards of a replica that spans nodes.")
    env: Mapping[str, str] = Field(description="Further environment variables, as `NCCL_SOCKET_IFNAME`.")
    runtime_class_name: str = Field(description="Runtime class of the pods; empty: the cluster's.")
    node_selector: Mapping[str, str] = Field(description="Labels of the nodes that may run them.")
    tolerations: Objects = Field(description="Taints that they tolerate.")
    affinity: Object = Field(description="Affinity; empty spreads the replicas over nodes.")
    volumes: Objects = Field(description="Further volumes.")
    volume_mounts: Objects = Field(description="Where they are mounted.")


class FaultToleranceValues(ChartSection):
    """Redis that keeps the state of Ray's head over its restart."""

    redis_address: str = Field(
        description="host:port of Redis; empty: none, and a replica whose head ends starts anew."
    )
    password: SecretKey = Field(description="Its password; no name: none.")


class RayValues(ChartSection):
    """The Ray cluster of each replica."""

    version: str = Field(pattern=r"^\d+\.\d+\.\d+$", description="Ray's version in the image.")
    fault_tolerance: FaultToleranceValues = Field(description="Redis that keeps the state of Ray's head.")


class ClaimValues(ChartSection):
    """A volume: an existing claim, a new one of a size, or an empty folder."""

    existing_claim: str = Field(description="Name of a claim that exists; empty makes one of `size`.")
    size: Quantity = Field(description="Size of a new claim; empty: a folder of the node that ends with the pod.")
    storage_class: str = Field(description="Its storage class; empty: the cluster's.")
    access_modes: Sequence[Literal["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"]] = Field(
        min_length=1, description="Its access modes; pods on several nodes need ReadWriteMany."
    )


class DownloadValues(ChartSection):
    """The Job that fetches weights before replicas start."""

    enabled: bool = Field(description="Fetch `config.model.path` and a draft of a hub into the claim.")
    timeout_seconds: int = Field(ge=60, le=604800, description="Longest that it may take.")


class ModelValues(ChartSection):
    """The cache of weights, mounted at `/models`."""

    claim: ClaimValues = Field(description="The volume of weights.")
    download: DownloadValues = Field(description="The Job that fetches weights.")
    offline: bool = Field(description="Replicas ask no hub: all weights are in the claim.")


class PodValues(ChartSection):
    """Pods that need no accelerator."""

    replicas: int = Field(ge=1, le=64, description="Pods.")
    cpu: Quantity = Field(min_length=1, description="CPUs of a pod.")
    memory: Quantity = Field(min_length=1, description="Memory of a pod, request and limit.")
    node_selector: Mapping[str, str] = Field(description="Labels of the nodes that may run them.")
    tolerations: Objects = Field(description="Taints that they tolerate.")


class IngressValues(ChartSection):
    """HTTP by Ingress."""

    enabled: bool = Field(description="Make an Ingress.")
    class_name: str = Field(description="Its class.")
    host: str = Field(description="Host name that clients ask for.")
    tls_secret: str = Field(description="Secret with the certificate; empty: no TLS.")
    annotations: Mapping[str, str] = Field(description="Its annotations.")


class RouteValues(ChartSection):
    """HTTP and gRPC by the Gateway API."""

    enabled: bool = Field(description="Make an HTTPRoute and a GRPCRoute.")
    gateway: str = Field(description="Name of the Gateway that they join.")
    gateway_namespace: str = Field(description="Its namespace; empty: that of the release.")
    host: str = Field(description="Host name that clients ask for.")


class AutoscalingValues(ChartSection):
    """More gateways by the CPU that they use."""

    enabled: bool = Field(description="Make a HorizontalPodAutoscaler, from `gateway.replicas` on.")
    max_replicas: int = Field(ge=1, le=64, description="Most pods.")
    cpu_percent: int = Field(ge=10, le=100, description="Part of the requested CPU that pods should use.")


class GatewayValues(PodValues):
    """The gateway's pods."""

    autoscaling: AutoscalingValues = Field(description="More pods by the CPU that they use.")
    drain_seconds: int = Field(ge=5, le=3600, description="Longest that a pod that is to end finishes its requests.")
    usage_claim: ClaimValues = Field(description="The volume of the log of use (one pod).")
    grpc_tls_secret: str = Field(description="Secret with `tls.crt` and `tls.key` of the gRPC port; empty: no TLS.")
    service_type: Literal["ClusterIP", "LoadBalancer", "NodePort"] = Field(description="Type of the Service.")
    ingress: IngressValues = Field(description="HTTP by Ingress.")
    route: RouteValues = Field(description="HTTP and gRPC by the Gateway API.")


class ControllerValues(PodValues):
    """The controller's pods."""

    enabled: bool = Field(description="Run a controller, which sets depth and caps by tier.")


class ProfileValues(ChartSection):
    """The Job that measures what a step costs (`sparktier profile`)."""

    enabled: bool = Field(description="Run it; the GPUs of one replica must be free.")
    out: str = Field(min_length=1, description="The table, below `/models`, for `config.speculation.step_times_path`.")
    batch: Sequence[int] = Field(description="Users at once; none: the program's.")


class CalibrateValues(ChartSection):
    """The Job that fits a drafter's confidences (`sparktier calibrate`)."""

    enabled: bool = Field(description="Run it; the GPUs of one replica must be free.")
    prompts: str = Field(description="Entry of `files` with prompts of your traffic, as jsonl.")
    out: str = Field(min_length=1, description="The calibrated drafter, a new folder below `/models`.")
    temperatures: Sequence[float] = Field(description="Temperatures of the answers; none: the program's.")


class JobValues(ChartSection):
    """Programs that measure on the cluster's own nodes."""

    timeout_seconds: int = Field(ge=60, le=604800, description="Longest that one may take.")
    profile: ProfileValues = Field(description="What a step costs.")
    calibrate: CalibrateValues = Field(description="A drafter's confidences.")


class NetworkPolicyValues(ChartSection):
    """Who may reach which pod."""

    enabled: bool = Field(description="Let only what needs a port reach it.")
    clients: Objects = Field(description="Peers that may reach the gateway's public ports; empty: all.")
    monitoring: Objects = Field(description="Peers that may read metrics; empty: none.")


class MonitoringValues(ChartSection):
    """What Prometheus and Grafana are told."""

    service_monitor: bool = Field(description="Make ServiceMonitors (needs the Prometheus operator).")
    rules: bool = Field(description="Make a PrometheusRule (likewise).")
    dashboard: bool = Field(description="Make a ConfigMap that Grafana's sidecar takes as a dashboard.")
    labels: Mapping[str, str] = Field(description="Labels by which the Prometheus operator finds them.")
    objective: float = Field(gt=0.5, lt=1, description="Part of a tier's requests that should keep its promise.")


class DisruptionValues(ChartSection):
    """How much a drain of nodes may take at once."""

    enabled: bool = Field(description="Make PodDisruptionBudgets.")
    max_unavailable: int = Field(ge=0, le=1, description="Pods of all replicas that a drain may take at once.")


class ChartValues(ChartSection):
    """All values but `config`."""

    name_override: str = Field(max_length=34, description="Name of the objects; empty: the release's name.")
    image: ImageValues = Field(description="The image that every pod runs.")
    secrets: SecretValues = Field(description="Secrets by reference.")
    files: Mapping[str, str] = Field(
        description="Files beside the configuration, in `/etc/sparktier/config`, as a table of step times."
    )
    engine: EngineValues = Field(description="The pods of replicas.")
    ray: RayValues = Field(description="The Ray cluster of each replica.")
    models: ModelValues = Field(description="The cache of weights.")
    jit_cache: ClaimValues = Field(description="The cache of compiled kernels, mounted at `/cache`.")
    gateway: GatewayValues = Field(description="The gateway.")
    controller: ControllerValues = Field(description="The controller.")
    jobs: JobValues = Field(description="Programs that measure on the cluster's own nodes.")
    network_policy: NetworkPolicyValues = Field(description="Who may reach which pod.")
    monitoring: MonitoringValues = Field(description="What Prometheus and Grafana are told.")
    disruption_budget: DisruptionValues = Field(description="How much a drain of nodes may take at once.")
    user_id: int = Field(ge=1, description="User and group that all pods run as.")
