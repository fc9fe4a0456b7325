{{- define "ballast.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- /* Release ballast: ballast-controller; release prod: prod-ballast-controller. Short enough for every suffix. */ -}}
{{- define "ballast.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- else if contains (include "ballast.name" .) .Release.Name }}
{{- printf "%s-controller" (.Release.Name | trunc 34 | trimSuffix "-") }}
{{- else }}
{{- printf "%s-controller" (printf "%s-%s" .Release.Name (include "ballast.name" .) | trunc 34 | trimSuffix "-") }}
{{- end }}
{{- end }}

{{- define "ballast.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "ballast.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name must name an existing ServiceAccount when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "ballast.username" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "ballast.serviceAccount" . }}
{{- end }}

{{- /* Lease and Leadership have one name everywhere. */ -}}
{{- define "ballast.lease" -}}
ballast-controller
{{- end }}

{{- define "ballast.selector" -}}
app.kubernetes.io/name: {{ include "ballast.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "ballast.labels" -}}
{{- $fixed := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63)
  "app.kubernetes.io/version" (.Chart.AppVersion | replace "+" "_")
  "app.kubernetes.io/managed-by" .Release.Service
  "app.kubernetes.io/part-of" "ballast" }}
{{- toYaml (merge (include "ballast.selector" . | fromYaml) $fixed .Values.commonLabels) }}
{{- end }}

{{- define "ballast.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "ballast.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "ballast.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* What the controller does inside a namespace: ClusterRole, or a Role in each of watchNamespaces.
       Exactly controller/operator/permissions.py; a test compares. */ -}}
{{- define "ballast.namespacedRules" -}}
- apiGroups: [ballast.dev]
  resources: [modelservices]
  verbs: [get, list, watch, create]
- apiGroups: [ballast.dev]
  resources: [plans]
  verbs: [get, list, watch, create, patch]
- apiGroups: [ballast.dev]
  resources: [expertplacements]
  verbs: [get, list, watch]
- apiGroups: [ballast.dev]
  resources: [modelservices/status, plans/status, expertplacements/status]
  verbs: [patch]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, patch]
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [get, list, watch, patch]
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets/scale]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch]
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, list, watch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, patch]
- apiGroups: [resource.k8s.io]
  resources: [resourceclaims]
  verbs: [get, list, watch]
{{- end }}

{{- /* What it reads of the cluster itself. */ -}}
{{- define "ballast.clusterRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [get, list, watch]
- apiGroups: [ballast.dev]
  resources: [gpuprofiles]
  verbs: [get, list, watch]
- apiGroups: [ballast.dev]
  resources: [gpuprofiles/status]
  verbs: [patch]
- apiGroups: [resource.k8s.io]
  resources: [resourceslices]
  verbs: [get, list, watch]
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [get, list, watch]
- apiGroups: [authorization.k8s.io]
  resources: [selfsubjectaccessreviews]
  verbs: [create]
{{- end }}
