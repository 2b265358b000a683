{{- define "culvert.image" -}}
{{ .root.Values.image.repository }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "culvert.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/component: {{ .name }}
app.kubernetes.io/part-of: culvert
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- define "culvert.selector" -}}
app.kubernetes.io/component: {{ . }}
app.kubernetes.io/part-of: culvert
{{- end }}

{{- define "culvert.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "culvert.logEnv" -}}
- {name: CULVERT_LOG, value: {{ .Values.log.level | quote }}}
- {name: CULVERT_LOG_FORMAT, value: {{ .Values.log.format | quote }}}
{{- end }}

{{- define "culvert.controlPlaneName" -}}
culvert-control-plane.{{ .Release.Namespace }}.svc
{{- end }}
