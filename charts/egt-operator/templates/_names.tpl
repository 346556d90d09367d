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
