{{- define "egt.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "egt.labels" -}}
app.kubernetes.io/name: egt-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "egt.selector" -}}
app.kubernetes.io/name: egt-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "egt.account" -}}
{{- .Values.serviceAccount.name | default (include "egt.name" .) -}}
{{- end }}

{{- define "egt.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .version }}
{{- end -}}
{{- end }}

{{- define "egt.environment" -}}
- {name: HOSTNAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: USER, value: egt}
- {name: EGT_LEASE_NAME, value: {{ include "egt.name" . | quote }}}
- {name: EGT_LEASE_NAMESPACE, value: {{ .Release.Namespace | quote }}}
- {name: EGT_METRICS_PORT, value: {{ .Values.metrics.port | quote }}}
- name: EGT_IMAGE
  value: {{ include "egt.image" (dict "image" .Values.pipelineImage "version" .Chart.AppVersion) }}
- {name: EGT_IMAGE_PULL_POLICY, value: {{ .Values.pipelineImage.pullPolicy }}}
- {name: EGT_NAMESPACES, value: {{ .Values.watch.namespaces | toJson | quote }}}
{{- range $name, $value := .Values.settings }}
- name: EGT_{{ $name | snakecase | upper }}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- range $name, $value := .Values.environment }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
