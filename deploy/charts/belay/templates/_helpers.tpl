{{- define "belay.driver" -}}csi.belay.storage{{- end }}
{{- define "belay.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}
{{- define "belay.pluginDir" -}}{{ .Values.kubeletDir }}/plugins/{{ include "belay.driver" . }}{{- end }}

{{- /* Labels of an object; the component is the second of the list. */}}
{{- define "belay.labels" -}}
app.kubernetes.io/name: belay
app.kubernetes.io/part-of: belay
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}
{{- define "belay.selector" -}}
app.kubernetes.io/name: belay
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- /* A container that has no rights on its machine. */}}
{{- define "belay.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- /* Of a confined container that reaches into its machine: where SELinux enforces, it could neither connect to the socket of a privileged one nor make
its own in kubelet's directory. Elsewhere it says nothing. */}}
{{- define "belay.beyondSELinux" -}}
seLinuxOptions:
  type: spc_t
{{- end }}

{{- /* What every container has. Given the chart, name, image and resources. */}}
{{- define "belay.container" -}}
- name: {{ .name }}
  image: {{ .image }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    {{- toYaml .resources | nindent 4 }}
{{- end }}

{{- /* A sidecar of the controller. It ends when it loses its lease, and is started again. Given the chart, name, image and port. */}}
{{- define "belay.sidecar" -}}
{{ include "belay.container" (dict "root" .root "name" .name "image" .image "resources" .root.Values.sidecars.resources) }}
  {{- include "belay.confined" . | nindent 2 }}
  ports:
    - name: {{ .short }}
      containerPort: {{ .port }}
  livenessProbe:
    httpGet:
      path: /healthz/leader-election
      port: {{ .short }}
    initialDelaySeconds: 10
    timeoutSeconds: 10
    periodSeconds: 20
  volumeMounts:
    - name: csi
      mountPath: /csi
  env:
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - name: NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- end }}

{{- /* Volumes of the stores, and where they are mounted. A disk that is mounted later appears in the pod, one that is unmounted goes from it. */}}
{{- define "belay.storeVolumes" -}}
{{- range $i, $dir := .Values.mirror.stores }}
- name: store-{{ $i }}
  hostPath:
    path: {{ $dir }}
    {{- /* A path of the operator's own that is not there is a mistake, and must not become a store on the system disk. */}}
    type: {{ ternary "DirectoryOrCreate" "Directory" (hasPrefix "/var/lib/belay/" $dir) }}
{{- end }}
{{- end }}
{{- define "belay.storeMounts" -}}
{{- range $i, $dir := .Values.mirror.stores }}
- name: store-{{ $i }}
  mountPath: {{ $dir }}
  mountPropagation: HostToContainer
{{- end }}
{{- end }}
