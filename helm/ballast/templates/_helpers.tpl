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

{{- /* The node agents: release ballast has ballast-agent. */ -}}
{{- define "ballast.agent" -}}
{{- printf "%s-agent" (include "ballast.fullname" . | trimSuffix "-controller") }}
{{- end }}

{{- define "ballast.agentUsername" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "ballast.agent" . }}
{{- end }}

{{- define "ballast.agentSelector" -}}
app.kubernetes.io/name: {{ include "ballast.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end }}

{{- define "ballast.agentLabels" -}}
{{- toYaml (merge (include "ballast.agentSelector" . | fromYaml) (include "ballast.labels" . | fromYaml)) }}
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

{{- define "ballast.portOf" -}}
{{- $host := (urlParse .).host }}
{{- $default := ternary 443 80 (hasPrefix "https:" .) | toString }}
{{- regexFind ":[0-9]+$" $host | trimPrefix ":" | default $default }}
{{- end }}

{{- /* One entry of prometheus.access (its index, itself) as an option of the controller; it names files, no secrets. */ -}}
{{- define "ballast.prometheusAccess" -}}
{{- $index := first . }}
{{- $access := last . }}
{{- $name := printf "prometheus.access[%d]" $index }}
{{- $folder := printf "/prometheus/%d" $index }}
{{- $who := list }}
{{- range list "token" "serviceAccountToken" "basicAuth" }}
{{- if hasKey $access . }}
{{- $who = append $who . }}
{{- end }}
{{- end }}
{{- if gt (len $who) 1 }}
{{- fail (printf "%s: %s exclude each other" $name (join " and " $who)) }}
{{- end }}
{{- if hasPrefix "http:" $access.url }}
{{- if and $who (not $access.allowHttp) }}
{{- fail (printf "%s: http shows %s to everybody on the way; use https, or set allowHttp where something else encrypts" $name (first $who)) }}
{{- end }}
{{- if or $access.ca $access.clientCertificate $access.serverName }}
{{- fail (printf "%s: ca, clientCertificate and serverName are of no use with http; use https" $name) }}
{{- end }}
{{- end }}
{{- if not (or $who $access.headers $access.ca $access.clientCertificate $access.serverName) }}
{{- fail (printf "%s: there is nothing to bring to %s" $name $access.url) }}
{{- end }}
{{- $parts := list (printf "url=%s" $access.url) }}
{{- if or (hasKey $access "token") (hasKey $access "serviceAccountToken") }}
{{- $parts = append $parts (printf "token-file=%s/token" $folder) }}
{{- else if $access.basicAuth }}
{{- $parts = concat $parts (list (printf "username-file=%s/username" $folder) (printf "password-file=%s/password" $folder)) }}
{{- end }}
{{- if $access.ca }}
{{- $parts = append $parts (printf "ca-file=%s/ca.crt" $folder) }}
{{- end }}
{{- if $access.clientCertificate }}
{{- $parts = concat $parts (list (printf "cert-file=%s/tls.crt" $folder) (printf "key-file=%s/tls.key" $folder)) }}
{{- end }}
{{- with $access.serverName }}
{{- $parts = append $parts (printf "server-name=%s" .) }}
{{- end }}
{{- range $header, $value := $access.headers }}
{{- if has (lower $header) (list "authorization" "proxy-authorization" "cookie" "host") }}
{{- fail (printf "%s: header %s is not for headers; use token or basicAuth, serverName" $name $header) }}
{{- end }}
{{- $parts = append $parts (printf "header=%s:%s" $header $value) }}
{{- end }}
{{- range $access.namespaces }}
{{- $parts = append $parts (printf "namespace=%s" .) }}
{{- end }}
{{- if and $access.allowHttp (hasPrefix "http:" $access.url) }}
{{- $parts = append $parts "allow-http" }}
{{- end }}
{{- $quoted := list }}
{{- range $parts }}
{{- $quoted = append $quoted (ternary (printf "\"%s\"" .) . (contains "," .)) }}
{{- end }}
{{- join "," $quoted }}
{{- end }}

{{- /* Its files, as sources of a projected volume: keys are named, so nothing else of a Secret is shown. */ -}}
{{- define "ballast.prometheusFiles" -}}
{{- with .token }}
- secret:
    name: {{ .existingSecret }}
    items:
      - key: {{ .existingSecretKey | default "token" }}
        path: token
{{- end }}
{{- if hasKey . "serviceAccountToken" }}
- serviceAccountToken:
    path: token
    {{- with (.serviceAccountToken).audience }}
    audience: {{ . | quote }}
    {{- end }}
    expirationSeconds: {{ int ((.serviceAccountToken).expirationSeconds | default 3600) }}
{{- end }}
{{- with .basicAuth }}
- secret:
    name: {{ .existingSecret }}
    items:
      - key: {{ .usernameKey | default "username" }}
        path: username
      - key: {{ .passwordKey | default "password" }}
        path: password
{{- end }}
{{- with .ca }}
{{- if .existingSecret }}
- secret:
    name: {{ .existingSecret }}
{{- else }}
- configMap:
    name: {{ .existingConfigMap }}
{{- end }}
    items:
      - key: {{ .key | default "ca.crt" }}
        path: ca.crt
{{- end }}
{{- with .clientCertificate }}
- secret:
    name: {{ .existingSecret }}
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- end }}
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
- apiGroups: [ballast.dev]
  resources: [powerdomains]
  verbs: [get, list, watch, patch]
- apiGroups: [ballast.dev]
  resources: [powerdomains/status]
  verbs: [patch]
- apiGroups: [ballast.dev]
  resources: [nodepowers]
  verbs: [list, create, patch, delete]
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
